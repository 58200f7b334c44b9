"""Whole projects around the C of a network: what an application is built from."""
