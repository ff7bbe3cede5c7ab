"""Targets of `merge_attn_states`: the reference attends to parts of the keys, and the function under test merges the parts.

Any rule is kept, because a part hides keys by the mask. Two or three parts are cut at places of which some leave a part empty.
Their tensors have strides of their own, an empty part's output is NaN, and some merges write into a tensor that they read.
"""

import dataclasses
import functools
import random
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import attn_reference
import torch
from attn_contract import Batch, Layer, UnsupportedError
from attn_fuzz.cases.poison import poison
from attn_fuzz.targets import far, no_interpreter, plans
from attn_fuzz.targets.choices import choices_by
from attn_fuzz.targets.target import EVERYTHING, AttentionFunction, Support, Target
from attn_fuzz.targets.triton import missing_triton
from attn_fuzz.verdict.rounding import Rounding

MOST_PARTS = 3
MOST_PADDING = 8
MergeFunction = Callable[..., object]
"""`merge_attn_states(out_a, lse_a, out_b, lse_b, *, out, lse)`"""


class State(NamedTuple):
    """Attention to a part of the keys: out [rows, H, D] and its LSE [H, rows]."""

    out: torch.Tensor
    lse: torch.Tensor


def attention_by(load_merge: Callable[[], MergeFunction]) -> AttentionFunction:
    """Attention that merges parts by the function that `load_merge` returns."""

    def attention(q, k, v, kv_cache, layer, batch, *, out, lse) -> None:
        if layer.output_scale is not None:
            raise UnsupportedError("merge_attn_states", "a quantized output", "the parts that it merges are not quantized")
        merge = load_merge()
        rows = int(batch.query_start_loc[-1])
        choose = choices_by((q.shape, batch.query_start_loc, batch.seq_lens))
        parts = [_state(q[:rows], choose) for _ in range(choose.randint(2, MOST_PARTS))]
        for request in _requests(q, k, v, kv_cache, layer, batch):
            _attend(request, layer, parts, choose)
        _merge(merge, parts, out.view(q.shape)[:rows], None if lse is None else lse[:, :rows], choose)

    return attention


def _merge(
    merge: MergeFunction, parts: list[State], out: torch.Tensor, lse: torch.Tensor | None, choose: random.Random
) -> None:
    """Merge the parts one after the other into the outputs of the call. A merge may write into a tensor that it reads."""
    state, *others = parts
    *inner, last = others
    for other in inner:
        into = choose.choice((state, other))
        merge(*state, *other, out=into.out, lse=into.lse)
        state = into
    if lse is not None and choose.random() < 0.5:
        state = State(out.copy_(state.out), lse.copy_(state.lse))
    merge(*state, *last, out=out, lse=lse)


def _requests(
    q: torch.Tensor,
    k: torch.Tensor | None,
    v: torch.Tensor | None,
    kv_cache: torch.Tensor | None,
    layer: Layer,
    batch: Batch,
) -> Iterator[attn_reference.Request]:
    if kv_cache is not None:
        return attn_reference.paged_requests(q, kv_cache, layer, batch, torch.float64)
    assert k is not None
    assert v is not None
    return attn_reference.varlen_requests(q, k, v, layer, batch, torch.float64)


def _attend(request: attn_reference.Request, layer: Layer, parts: list[State], choose: random.Random) -> None:
    """Write a request's rows of each part. The sinks join one of the parts."""
    keys = request.visible.shape[1]
    inner = sorted(choose.choice((0, keys, choose.randint(0, keys))) for _ in parts[1:])
    with_sinks = choose.randrange(len(parts))
    position = torch.arange(keys, device=request.visible.device)
    for i, (begin, end) in enumerate(zip((0, *inner), (*inner, keys), strict=True)):
        held = dataclasses.replace(request, visible=request.visible & (begin <= position) & (position < end))
        found = attn_reference.attend(held, layer if i == with_sinks else dataclasses.replace(layer, sinks=None))
        # a part without a key holds anything
        seen = (found.lse > -torch.inf).T[..., None]
        parts[i].out[request.rows] = torch.where(seen, found.out, torch.nan).to(parts[i].out.dtype)
        parts[i].lse[:, request.rows] = found.lse.float()


def _state(q: torch.Tensor, choose: random.Random) -> State:
    """Memory for a part, with poison around and between its rows."""
    rows, heads, head_size = q.shape
    head_step = head_size + choose.choice((0, 0, MOST_PADDING))
    row_step = heads * head_step + choose.choice((0, MOST_PADDING))
    lse_step = rows + choose.choice((0, 1, MOST_PADDING))
    out = poison(((rows + 2) * row_step,), q.dtype, q.device)
    lse = poison(((heads + 2) * lse_step,), torch.float32, q.device)
    return State(
        out.as_strided((rows, heads, head_size), (row_step, head_step, 1), row_step),
        lse.as_strided((heads, rows), (lse_step, 1), lse_step),
    )


def _support(device: str) -> Support:
    return dataclasses.replace(EVERYTHING, output_dtypes=(), max_tokens=128, max_seq_len=512)


def merge_target(name: str, load_merge: Callable[[], MergeFunction], **fields: Any) -> Target:
    """A merge as a target.

    Args:
        name: of the target.
        load_merge: imports and returns the function.
        fields: other fields of Target.
    """
    return Target(
        name=name,
        attention=attention_by(load_merge),
        support=_support,
        rounding=lambda device: Rounding(keys_per_tile=64, merged_parts=MOST_PARTS),
        **fields,
    )


def _triton_merge() -> MergeFunction:
    import attn_optimized

    def merge(out_a, lse_a, out_b, lse_b, *, out, lse) -> None:
        """Some calls have no `out`. On a CPU some are launched as on a GPU that is not here, or reach beyond 2^31 elements."""
        function = attn_optimized.merge_attn_states
        forms = [function, functools.partial(_returned, function)]
        if out_a.device.type == "cpu":
            no_interpreter.check(lambda: function(out_a, lse_a, out_b, lse_b, out=out, lse=lse), out_a.dtype)
            forms += [plans.merge_attn_states, functools.partial(far.merge_attn_states, function)]
        choose = choices_by((out_a.shape, out_a.stride(), out_b.stride()))
        choose.choice(forms)(out_a, lse_a, out_b, lse_b, out=out, lse=lse)

    return merge


def _returned(merge: Callable[..., torch.Tensor], *states: torch.Tensor, out: torch.Tensor, lse: torch.Tensor | None) -> None:
    """Merge without `out`, and copy the tensor that is returned."""
    out.copy_(merge(*states, out=None, lse=lse))


TRITON_MERGE = merge_target(
    "triton-merge",
    _triton_merge,
    description="the Triton kernel merge_attn_states: parts of the keys by the reference, merged",
    unavailable=missing_triton,
)
