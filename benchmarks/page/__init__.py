"""Pages of what was measured."""
