"""Packages that only the extra ``train`` installs."""

EXTRAS = dict.fromkeys(("torch", "filelock", "kornia", "matplotlib", "safetensors", "tensorboard"), "train")
