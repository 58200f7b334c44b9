"""The commands of the export room, one file each."""
