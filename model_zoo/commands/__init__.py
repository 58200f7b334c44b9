"""The commands of the model zoo, one file each."""
