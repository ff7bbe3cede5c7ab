"""Bugs that a run puts into a module's source in memory, before its worker processes import the module."""
