"""Kernels as generated tiles: one file for each instruction set."""
