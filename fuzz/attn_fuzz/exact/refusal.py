"""Errors for values that exact mode cannot carry."""


class NotCarriedError(Exception):
    """Exact mode cannot compute an operation, and names it."""
