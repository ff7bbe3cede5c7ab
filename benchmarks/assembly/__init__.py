"""Loops in AMD's assembly, and what published rates let them reach."""
