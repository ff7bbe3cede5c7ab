"""Selects a backend for a layer, or for each layer of a model whose layers share memory, with the reasons against the others.

Data in, data out: nothing here runs a kernel or asks a device, but `this_architecture`.
"""

from attn_optimized.selector.layer import BackendSelection, Skipped, select
from attn_optimized.selector.model import Assignment, select_model
from attn_optimized.selector.priorities import (
    PRIORITIES,
    CacheKind,
    cache_kind,
    parse_architecture,
    priorities,
    this_architecture,
)

__all__ = [
    "PRIORITIES",
    "Assignment",
    "BackendSelection",
    "CacheKind",
    "Skipped",
    "cache_kind",
    "parse_architecture",
    "priorities",
    "select",
    "select_model",
    "this_architecture",
]
