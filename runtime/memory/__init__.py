"""The memory of one inference: planned for a target, measured in its runtime, and what it costs."""
