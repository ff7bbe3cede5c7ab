"""Visibility: which keys a query sees. The specification, one function per rule, and `visible`, which composes the rules.

p is the position of a query and j the position of a key: of key c, from 0, it is c, or with a key_unit the position of the last
of the tokens that share the key, (c + 1) * key_unit - 1. All rules together are one formula:

    visible(p, j) = 0 <= j < seq_len  and  (base(p, j)  or  in_range(p, j))  and  selected  and  qq_bias does not hide j
    base          = (not causal or j <= p)  and  (in_window or j < sink_tokens)  and  in_chunk
    in_window     = (left < 0 or p - j <= left)  and  (right < 0 or j - p <= right)
    in_chunk      = chunked_local is None  or  p // chunked_local == j // chunked_local
    in_range      = some [a, b] of the request's bidirectional_ranges holds both p and j
                    and  (not ranges_clamped  or  left < 0  or  p - j <= left)
    selected      = selection_unit is None  or  c // selection_unit is among the units that the step selects for the query

In a window (left, right) both edges are inclusive, -1 is unlimited and 0 a real edge. A window leaves the first sink_tokens
keys visible (StreamingLLM; Xiao et al., arXiv:2309.17453; AITER's `sink_size`), but causality and chunks hide them too.

Chunks cut the positions into stretches of chunked_local, and a query sees the keys of its own chunk only (Llama 4's chunked
attention). `//` is a floor: a query before the sequence, p < 0, shares its chunk with no key.

A bidirectional range is the stretch of a prompt that an image covers: the tokens in it see each other both ways, whatever
causality, window and chunks say (vLLM's `mm_prefix_range`). With ranges_clamped the left edge of the window holds inside the
range too, as in Gemma 3's own code (`create_attention_mask` in google/gemma_pytorch), in transformers
(`create_masks_for_vision_model`) and in Gemma 4. A range with b < a is none.

A selection names keys that an indexer chose for a query: tokens (DeepSeek-V3.2, arXiv:2512.02556), or blocks of tokens
(MiniMax-M3; NSA, arXiv:2502.11089). It hides keys, and shows none that another rule hides: of a unit that the query stands in,
causality leaves the tokens up to its own. Each KV head may have a selection of its own; its query heads share it.

Where key_unit tokens share a key, `j <= p` says that all of them are the query's own or earlier ones, and `j < seq_len` that
they are there: the query sees the first `(p + 1) // key_unit` keys, of the `seq_len // key_unit` that the request has. A layer
of DeepSeek-V4 attends to such keys and to the tokens of a window in one softmax: two calls, and `merge_attn_states` of both.
Neither source leaves out what the other holds: a token of the window counts beside a selected key that it shares, as where
transformers concatenates the two (`DeepseekV4Attention`).

A key whose qq_bias is -inf is hidden by it, even in a range (tree drafts: a token of another branch). Cross-attention
(ENCODER_DECODER) sees all keys, for any number of queries, 1 or more (vLLM #38450, #39119: causality is invisible at query_len
1 and wrong above it). A key past seq_len is never visible, causal or not (vLLM #40176: the tail of the last tile).

In the functions, p is [query_len, 1] and j is [1, k_len]. A rule gives a bool tensor that broadcasts to [query_len, k_len]; a
selection of each head, to [H, query_len, k_len].
"""

import torch
from attn_contract import Batch, ContractError, Layer
from attn_contract.arguments import check_dims, check_int, check_tensor, check_type

from attn_reference.logits import place_qq_bias

VISIBILITY_RULES = frozenset(
    {"window", "sink_tokens", "chunked_local", "bidirectional_ranges", "ranges_clamped", "selection_unit", "key_unit"}
)
"""The fields of Layer and Batch that `visible` implements, beside `causal`."""


def visible(
    query_positions: torch.Tensor, key_positions: torch.Tensor, layer: Layer, batch: Batch, request: int
) -> torch.Tensor:
    """The mask of a request: the keys that its queries see.

    Args:
        query_positions: [query_len] integers, p of each query; negative where query_len > seq_len.
        key_positions: [k_len] integers, j of each key.
        layer, batch: their rules, and the request's seq_len, causal flag, ranges, selection and qq_bias.
        request: r, the index of the request in the batch.

    Returns:
        [query_len, k_len] bool, or [H, query_len, k_len] if each KV head has a selection of its own.

    Raises:
        ContractError: an argument is of another type or shape, the batch has no such request, or its step no such query.
    """
    _check_visible(query_positions, key_positions, layer, batch, request)
    p, j = query_positions[:, None], key_positions[None, :]
    seen = in_window(p, j, layer.window) | is_sink_token(j, layer.sink_tokens)
    if batch.causal if isinstance(batch.causal, bool) else batch.causal[request]:
        seen &= is_causal(p, j)
    if layer.chunked_local is not None:
        seen &= in_chunk(p, j, layer.chunked_local)
    if batch.bidirectional_ranges is not None:
        seen |= in_range(p, j, batch.bidirectional_ranges[request], layer.window[0] if layer.ranges_clamped else -1)
    if layer.selection_unit is not None:
        c = key_at(j, layer.key_unit)
        of_heads = is_selected(c, selected_units(query_positions, layer, batch, request), layer.selection_unit)
        seen = seen & (of_heads[0] if len(of_heads) == 1 else of_heads)
    if batch.qq_bias is not None:
        seen &= ~is_hidden(place_qq_bias(query_positions, key_positions, batch, request))
    return seen & (j >= 0) & (j < batch.seq_lens[request])


def position_of(c: torch.Tensor, key_unit: int | None) -> torch.Tensor:
    """j of key c: where several tokens share a key, the position of the last of them."""
    return c if key_unit is None else (c + 1) * key_unit - 1


def key_at(j: torch.Tensor, key_unit: int | None) -> torch.Tensor:
    """c of the key at position j: the inverse of `position_of`."""
    return j if key_unit is None else (j + 1) // key_unit - 1


def is_causal(p: torch.Tensor, j: torch.Tensor) -> torch.Tensor:
    """The key is the query's own or an earlier one."""
    return j <= p


def in_window(p: torch.Tensor, j: torch.Tensor, window: tuple[int, int]) -> torch.Tensor:
    """The key is at most `left` positions before the query and at most `right` after it; -1 is unlimited, 0 is a real edge.

    A model's `sliding_window=W` counts the query's own token: it is (W - 1, W - 1).
    """
    left, right = window
    seen = torch.full_like(p - j, True, dtype=torch.bool)
    if left >= 0:
        seen &= p - j <= left
    if right >= 0:
        seen &= j - p <= right
    return seen


def is_sink_token(j: torch.Tensor, sink_tokens: int) -> torch.Tensor:
    """The key is one of the first, which a window does not hide (StreamingLLM, arXiv:2309.17453; AITER's `sink_size`)."""
    return j < sink_tokens


def in_chunk(p: torch.Tensor, j: torch.Tensor, chunked_local: int) -> torch.Tensor:
    """Query and key lie in one chunk of positions (Llama 4's `attention_chunk_size`).

    The division is a floor: a query before the sequence (p < 0) lies in a chunk that holds no key.
    """
    return p // chunked_local == j // chunked_local


def in_range(p: torch.Tensor, j: torch.Tensor, ranges: torch.Tensor, left: int) -> torch.Tensor:
    """One inclusive range holds query and key, and the key is at most `left` positions before the query; -1 is unlimited.

    With `ranges_clamped`, `left` is the window's left edge: Gemma 3 and 4 and transformers AND the window with causal-or-image.
    Without it, `left` is -1: vLLM's kernels OR the image with causal-and-window (`mm_prefix_range`), except for Gemma 4.

    Args:
        ranges: [n, 2] integers, the first and the last position of each; a range whose last is before its first holds nothing.
    """
    together = torch.zeros_like(p - j, dtype=torch.bool)
    for first, last in ranges.tolist():
        together |= (first <= p) & (p <= last) & (first <= j) & (j <= last)
    return together & in_window(p, j, (left, -1))


def is_selected(c: torch.Tensor, units: torch.Tensor, selection_unit: int) -> torch.Tensor:
    """[..., k_len]: the key lies in one of the units that a query selects. A unit below 0 holds no key.

    The division is a floor: a key lies in the unit `c // selection_unit`.

    Args:
        units: [..., W] integers, for each query.
    """
    return ((c // selection_unit)[..., None] == units[..., None, :]).any(-1)


def selected_units(query_positions: torch.Tensor, layer: Layer, batch: Batch, request: int) -> torch.Tensor:
    """[1 or H, query_len, W]: the units that the step selects for the queries at these positions of a request.

    Raises:
        ContractError: the layer has a selection_unit and the step no selection, or no query of the request is at a position.
    """
    if batch.selected is None:
        raise ContractError("batch.selected", None, f"a tensor: the layer has a selection_unit ({layer.selection_unit})")
    start, end = batch.query_start_loc[request : request + 2].tolist()
    rows = end - int(batch.seq_lens[request]) + query_positions.long()
    if len(wrong := ((rows < start) | (rows >= end)).nonzero()):
        i = int(wrong[0])
        expected = f"the position of one of the {end - start} queries of request {request}"
        raise ContractError(f"query_positions[{i}]", int(query_positions[i]), expected)
    of_kv_heads = batch.selected[:, rows]
    return of_kv_heads if len(of_kv_heads) == 1 else of_kv_heads.repeat_interleave(layer.num_heads // layer.num_kv_heads, 0)


def is_hidden(qq_bias: torch.Tensor) -> torch.Tensor:
    """The bias between query and key is -inf: the key is on another branch of a tree of drafts."""
    return qq_bias == -torch.inf


def _check_visible(
    query_positions: torch.Tensor, key_positions: torch.Tensor, layer: Layer, batch: Batch, request: int
) -> None:
    for name, positions, dim in (("query_positions", query_positions, "query_len"), ("key_positions", key_positions, "k_len")):
        check_tensor(name, positions)
        check_dims(name, positions, (dim,))
        if positions.dtype not in (torch.int32, torch.int64):
            raise ContractError(name, positions.dtype, "torch.int32 or torch.int64")
    check_type("layer", layer, Layer, "a Layer")
    check_type("batch", batch, Batch, "a Batch")
    check_int("request", request, minimum=0)
    if request >= batch.num_requests:
        raise ContractError("request", request, f"one of the {batch.num_requests} requests, from 0")
