"""The networks of the zoo: their configs, their torch modules, and the registry of their names."""

from . import baselines, squeezenet  # noqa: F401  They register their networks.
