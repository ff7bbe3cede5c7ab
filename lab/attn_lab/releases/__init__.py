"""A time machine over releases of other projects: all fixes of others, and findings from first to last."""
