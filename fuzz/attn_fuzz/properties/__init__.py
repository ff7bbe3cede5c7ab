"""Relations between a target's own outputs, which need no oracle: for targets that have none, and for sizes at which the
reference is too slow.

    batches     the same requests in another batch
    memory      the same numbers elsewhere in memory, other numbers in memory that is not read
    heads       heads and channels in another order
    values      linear in V; weights sum to 1 less the sink's share
    logits      what leaves the softmax unchanged
    masks       masks that hide nothing, and keys that are hidden from everyone
    far         the same keys, far after the beginning of their sequence
    parts       attention to parts of the keys, merged
    selection   selections that are written in another way

A property takes a step whose outputs are written, calls the target again on variants of the step, and compares outputs bit by
bit, or within a bound of rounding errors (`bound`). Some properties take an error bound, because a variant may be launched in
another way than the step. Without an error bound they compare bit by bit. A property that also takes a launch compares bit by
bit where the launches are equal.

Sources: Chen, Cheung and Yiu, "Metamorphic testing: a new approach for generating next test cases" (HKUST-CS98-01, 1998); He,
"Defeating nondeterminism in LLM inference" (2025), on batch invariance.
"""

from attn_fuzz.properties.batches import (
    batch_composition,
    chunked_prefill,
    neighbours_rules,
    padded_batch,
    repetition,
    request_order,
)
from attn_fuzz.properties.bound import error_bound
from attn_fuzz.properties.far import far_keys
from attn_fuzz.properties.heads import channel_permutation, head_permutation
from attn_fuzz.properties.logits import scale_in_query, shifted_keys
from attn_fuzz.properties.masks import forgotten_keys, last_row, wide_window
from attn_fuzz.properties.memory import block_permutation, garbage
from attn_fuzz.properties.parts import split_keys
from attn_fuzz.properties.relation import CallTarget, ErrorBound, Launch, Property, compared
from attn_fuzz.properties.selection import all_selected, order_of_selection
from attn_fuzz.properties.values import additivity, doubled_values, weights

__all__ = [
    "CallTarget",
    "ErrorBound",
    "Launch",
    "Property",
    "additivity",
    "all_selected",
    "batch_composition",
    "block_permutation",
    "channel_permutation",
    "chunked_prefill",
    "compared",
    "doubled_values",
    "error_bound",
    "far_keys",
    "forgotten_keys",
    "garbage",
    "head_permutation",
    "last_row",
    "neighbours_rules",
    "order_of_selection",
    "padded_batch",
    "repetition",
    "request_order",
    "scale_in_query",
    "shifted_keys",
    "split_keys",
    "weights",
    "wide_window",
]
