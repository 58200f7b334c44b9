"""Commands of the runtime, one file each."""
