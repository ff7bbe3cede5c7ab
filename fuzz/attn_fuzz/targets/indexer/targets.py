"""Targets that select keys, and what other packages' targets of this kind share."""

import dataclasses
from collections.abc import Callable
from typing import Any, Final

import attn_reference
import torch
from attn_contract import AttentionType, IndexLayout, IndexScore, Layout, PhysicalOrder, ScaleFormat
from attn_fuzz.targets.engine import ANY_ENGINE, Engine
from attn_fuzz.targets.indexer.functions import IndexerFunctions, attention_by
from attn_fuzz.targets.indexer.step import Terms
from attn_fuzz.targets.support import Support
from attn_fuzz.targets.target import AttentionFunction, Target
from attn_fuzz.verdict.rounding import Rounding

FORCED: Final = {"first_units": (0, 0, 0, 1, 2), "last_units": (0, 0, 0, 1, 2)}
EVERY_TERM: Final[Terms] = {
    "layout": tuple(IndexLayout),
    "cache_dtype": (torch.float8_e4m3fn, torch.float8_e4m3fnuz, None),
    "q_dtype": (None, None, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e4m3fnuz),
    "scale_format": tuple(ScaleFormat),
    "score": tuple(IndexScore),
    "key_unit": (1, None),
    **FORCED,
}


def index_engine(**fields: Any) -> Engine:
    """The Engine of index layers, which have no K, V or out."""
    settings = {
        "selections": ("top",),
        "empty_selections": False,
        "other_views": False,
        "other_scales": False,
        "scale_signs": (1,),
        "orders": (PhysicalOrder.LBHNC,),
        "planes": (False,),
        "flat_out": (False,),
        "dense_out": (True,),
        "unlike_strides": (False,),
        "saturated": False,
        "recycled": False,
        "padding": (0,),
        "num_layers": (1,),
    }
    return dataclasses.replace(ANY_ENGINE, **(settings | fields))


def index_target(name: str, functions: Callable[[], IndexerFunctions], terms: Terms, **fields: Any) -> Target:
    """A target that chooses keys.

    Args:
        name: the name of the target.
        functions, terms: see `attention_by`.
        fields: for `judged_target`.
    """
    return judged_target(name, attention_by(functions, terms), **fields)


def judged_target(name: str, attention: AttentionFunction, **fields: Any) -> Target:
    """A target whose function judges what it calls, for a step of attention over a selection.

    Args:
        name: the name of the target.
        attention: sets the output to 0, or raises FailedCheckError.
        fields: other fields of Target, and those of its Support beside the ones that all such targets have.
    """
    support = {
        "attn_types": (AttentionType.DECODER,),
        "dtypes": ("bfloat16",),
        "layouts": (Layout.CONTENT_PACKED,),
        "rules": ("selection_unit",),
        "required_rules": ("selection_unit",),
        "head_sizes": (32, 128, 16, 64),
        "group_sizes": (4, 1, 16, 64),
        "block_sizes": (16, 64, 1, 128),
        "engine": index_engine(),
        "max_tokens": 16,
        "max_seq_len": 300,
    }
    of_support = {field.name for field in dataclasses.fields(Support)}
    support |= {field: fields.pop(field) for field in [*fields] if field in of_support}
    return Target(
        name=name,
        attention=attention,
        support=lambda device: Support(**support),
        rounding=lambda device: Rounding(keys_per_tile=1),
        refuses=False,
        oracle=False,
        exact=False,
        properties=(),
        **fields,
    )


REFERENCE_INDEXER = index_target(
    "reference-indexer",
    lambda: IndexerFunctions(
        write_index_cache=attn_reference.write_index_cache,
        index_logits=attn_reference.index_logits,
        select=attn_reference.select,
        repeats=True,
    ),
    EVERY_TERM,
    description="the reference's index cache, logits and selection: a check of the judge",
)
