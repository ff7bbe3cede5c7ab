"""The fuzzer, and what a running program uses of it: `check`, `capture` and `recording` of calls of attention.

Importing the package imports nothing else: not torch, and no kernel, which a bug of the zoo may have to reach first.
"""

import importlib
from typing import TYPE_CHECKING

from attn_fuzz import extras

if TYPE_CHECKING:
    from attn_fuzz.cases.call import Call
    from attn_fuzz.cases.captures import CaptureError, capture
    from attn_fuzz.shadow.shadow import Shadow
    from attn_fuzz.verdict.judge import DisagreementError, Judgement
    from attn_fuzz.verdict.live import Recording, check, recording
    from attn_fuzz.verdict.rounding import Rounding

_HOMES = {
    "Call": "cases.call",
    "CaptureError": "cases.captures",
    "capture": "cases.captures",
    "DisagreementError": "verdict.judge",
    "Judgement": "verdict.judge",
    "Rounding": "verdict.rounding",
    "Recording": "verdict.live",
    "Shadow": "shadow.shadow",
    "check": "verdict.live",
    "recording": "verdict.live",
}

__all__ = [
    "Call",
    "CaptureError",
    "DisagreementError",
    "Judgement",
    "Recording",
    "Rounding",
    "Shadow",
    "capture",
    "check",
    "recording",
]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'attn_fuzz' has no attribute {name!r}")
    extras.require("fuzz")
    found = globals()[name] = getattr(importlib.import_module(f"attn_fuzz.{_HOMES[name]}"), name)
    return found
