"""``python -m firebox``: the command line."""

from .runtime.commands.main import main

main()
