"""Latency of a file on this machine."""
