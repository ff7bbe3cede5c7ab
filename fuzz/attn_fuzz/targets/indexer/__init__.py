"""Targets that choose keys: an index cache is written, units are scored, and the best are selected.

A step of an index layer is made of a step of attention over a selection, so that drawing, shrinking, verdicts and findings are
those of every target. The case says the lengths, blocks, drafts and padding, and whether rows of q are a part of longer ones
(`fused_qkv`). Its query heads are index heads, its head size theirs, its selection_unit the unit, and the width of its
`selected` is top_k. The case's seed draws the rest: the terms of the index layer that a target serves, and the numbers, of one
of `NUMBERS`. Slots without a key hold NaN, and so do rows of no request.

The input of each stage is the reference's result of the stage before, or the target's own result if it was right:

    write_index_cache   every byte of the cache is compared with what the reference writes
    gather              the keys of all requests, one after the other: every byte is one of the cache
    index_logits        each logit that a row sees, within a derived bound (`attn_fuzz.verdict.indexer`)
    select              by the very logits that it is given, which are drawn if the target makes none: half of them are
                        neighbours in float32. Logits that a row does not see hold anything. In some steps the selection is
                        made twice, and must be the same set if the target promises that
    choose              logits and selection in one: the selection could be made of some logits within the bound

Before some steps, logits were computed while the cache held other keys: nothing of that step may remain.

There is no attention: the output of the step is 0.
"""

from attn_fuzz.targets.indexer.functions import (
    IndexerFunctions,
    attention_by,
    check,
    guarded,
    unwritten_logits,
    unwritten_selection,
)
from attn_fuzz.targets.indexer.gathered import GatheredKeys, drafts_of, gathered_keys, of_ranges
from attn_fuzz.targets.indexer.step import NUMBERS, IndexStep, index_step
from attn_fuzz.targets.indexer.targets import EVERY_TERM, FORCED, REFERENCE_INDEXER, index_engine, index_target, judged_target
from attn_fuzz.targets.indexer.triton import TRITON_INDEXER

__all__ = [
    "EVERY_TERM",
    "FORCED",
    "NUMBERS",
    "REFERENCE_INDEXER",
    "TRITON_INDEXER",
    "GatheredKeys",
    "IndexStep",
    "IndexerFunctions",
    "attention_by",
    "check",
    "drafts_of",
    "gathered_keys",
    "guarded",
    "index_engine",
    "index_step",
    "index_target",
    "judged_target",
    "of_ranges",
    "unwritten_logits",
    "unwritten_selection",
]
