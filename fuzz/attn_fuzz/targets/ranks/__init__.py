"""Targets of attention over ranks that share the keys of each request."""
