"""Sessions over the installed runtimes, ensembles and evaluation."""
