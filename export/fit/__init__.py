"""Exact rewrites of an int8 graph that lower its peak memory below a budget."""
