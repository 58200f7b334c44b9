"""Latency and memory of a file on this machine."""

from .latency import Profile, profile

__all__ = ["Profile", "profile"]
