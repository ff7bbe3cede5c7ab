"""A time machine over releases of other projects: fixes that nobody here chose, and findings from first to last."""
