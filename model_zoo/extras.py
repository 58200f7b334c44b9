"""Packages that only the extra ``train`` installs."""

EXTRAS: dict[str, str] = dict.fromkeys(
    ("torch", "filelock", "kornia", "matplotlib", "safetensors", "tensorboard"), "train"
)
