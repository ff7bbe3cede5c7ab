"""Errors of extracting a statement. Importing this module needs no extra."""

from attn_fuzz.errors import InputError


class UnsupportedConstructError(InputError):
    """Source that the extractor does not understand. The message names file, line and construct."""


class UnknownTheoremError(InputError):
    """No theorem has this name."""
