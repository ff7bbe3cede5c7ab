"""What goes wrong while a statement is extracted. Importing this module needs no extra."""

from attn_fuzz.errors import InputError


class UnsupportedConstructError(InputError):
    """Source that the extractor does not understand. The message names file, line and construct."""


class UnknownTheoremError(InputError):
    """There is no theorem of such a name."""
