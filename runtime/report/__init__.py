"""A memory plan as a page, as charts and as tables."""
