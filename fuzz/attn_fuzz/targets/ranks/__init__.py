"""Targets of attention over ranks that share the keys of each request."""

from typing import Any


def __getattr__(name: str) -> Any:
    """Until editable installs are made anew: their entry points name this module."""
    if name not in ("TRITON_RANKS", "REFERENCE_RANKS"):
        raise AttributeError(name)
    from attn_fuzz.targets.ranks import local_calls

    return getattr(local_calls, name)
