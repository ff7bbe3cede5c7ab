"""Targets of `merge_attn_states` and `merge_attn_parts`.

The reference attends to parts of the keys, and the function under test merges the parts. All rules apply, because a part hides
keys by the mask. Some cuts leave a part empty. The parts' tensors have strides of their own. The output of an empty part is
NaN, and some merges of two write into a tensor that they read.
"""

import dataclasses
import functools
import random
from collections.abc import Callable
from typing import Any, NamedTuple

import attn_reference
import torch
from attn_contract import Layer, UnsupportedError
from attn_fuzz.cases.poison import LEFTOVER_LSE, leftovers
from attn_fuzz.extras import triton_unavailable
from attn_fuzz.targets.modes import far
from attn_fuzz.targets.modes.planned import drawn_gpu
from attn_fuzz.targets.parts import AttentionState, parts_like, requests_of, stacked, state, write_state
from attn_fuzz.targets.plans import interprets, modules, planned
from attn_fuzz.targets.preceded import preceded
from attn_fuzz.targets.rng import rng_of, rng_of_call
from attn_fuzz.targets.rows import rows_of
from attn_fuzz.targets.support import EVERYTHING, Support
from attn_fuzz.targets.target import AttentionFunction, Target
from attn_fuzz.verdict.rounding import Rounding

MAX_PARTS, MAX_AT_ONCE = 3, 5
MergeFunction = Callable[..., object]
"""`merge_attn_states(out_a, lse_a, out_b, lse_b, *, out, lse)`, with the options that `Merges` says."""


class Merges(NamedTuple):
    """Further inputs of a merge, beside two states.

    Attributes:
        empty_lses: the LSEs that a part without a key may have.
        has_prefix_bound: True if it takes `prefill_tokens_with_context`.
        has_output_scale: True if it takes `output_scale`, and gives float8.
    """

    empty_lses: tuple[float, ...] = (-torch.inf,)
    has_prefix_bound: bool = False
    has_output_scale: bool = False


TWO_STATES = Merges()
EVERY_OPTION = Merges(empty_lses=(-torch.inf, torch.inf, torch.nan), has_prefix_bound=True, has_output_scale=True)


def attention_by(load_merge: Callable[[], MergeFunction], takes: Merges = TWO_STATES) -> AttentionFunction:
    """Attention that merges parts two by two, by the function that `load_merge` returns."""

    def attention(q, k, v, kv_cache, layer, batch, *, out, lse) -> None:
        _check_output(layer, takes.has_output_scale)
        merge = load_merge()
        rows = int(batch.query_start_loc[-1])
        rng = rng_of_call(q, batch)
        like = parts_like(q, out, layer, rows)
        parts = [state(like, layer, rng) for _ in range(rng.randint(2, MAX_PARTS))]
        bound = rng.randint(0, rows) if takes.has_prefix_bound and rng.random() < 0.5 else None
        for request in requests_of(q, k, v, kv_cache, layer, batch):
            _attend(request, layer, parts, rng, takes.empty_lses, rows if bound is None else bound)
        first = {}
        if bound is not None:
            # there is no prefix: these numbers would change the result if they were read
            parts[0].out[bound:] = leftovers(parts[0].out[bound:].shape, torch.float32, q.device)
            parts[0].lse[:, bound:] = LEFTOVER_LSE
            first = {"prefill_tokens_with_context": bound}
        last = {} if layer.output_scale is None else {"output_scale": layer.output_scale}
        _merge(merge, parts, rows_of(out, layer, rows), None if lse is None else lse[:, :rows], rng, first, last)

    return attention


def _merge(
    merge: MergeFunction,
    parts: list[AttentionState],
    out: torch.Tensor,
    lse: torch.Tensor | None,
    rng: random.Random,
    first: dict[str, Any],
    last: dict[str, Any],
) -> None:
    """Merge the parts one after the other into the outputs of the call. A merge may write into a tensor that it reads.

    Args:
        first, last: options of the first merge and of the last one.
    """
    merged, *others = parts
    *inner, other = others
    options = first
    for part in inner:
        into = rng.choice((merged, part))
        merge(*merged, *part, out=into.out, lse=into.lse, **options)
        merged, options = into, {}
    if lse is not None and out.dtype == merged.out.dtype and rng.random() < 0.5:
        merge(*merged, *other, out=merged.out, lse=merged.lse, **options, **last)
        out.copy_(merged.out)
        lse.copy_(merged.lse)
        return
    merge(*merged, *other, out=out, lse=lse, **options, **last)


def parts_attention_by(load_merge: Callable[[], MergeFunction], most_parts: int) -> AttentionFunction:
    """Attention that merges any number of parts at once, by a function with the signature of `merge_attn_parts`."""

    def attention(q, k, v, kv_cache, layer, batch, *, out, lse) -> None:
        merge = load_merge()
        rows = int(batch.query_start_loc[-1])
        rng = rng_of_call(q, batch)
        outs, lses = stacked(parts_like(q, out, layer, rows), layer, rng.randint(1, most_parts), rng)
        parts = [AttentionState(*part) for part in zip(outs, lses, strict=True)]
        for request in requests_of(q, k, v, kv_cache, layer, batch):
            _attend(request, layer, parts, rng, EVERY_OPTION.empty_lses, rows)
        options: dict[str, Any] = {} if layer.output_scale is None else {"output_scale": layer.output_scale}
        if rng.random() < 0.5:
            # exact: a quotient that is rounded, as a kernel's logarithm of base 2 is
            lses.copy_((lses.double() / torch.tensor(2.0, dtype=torch.float64).log()).float())
            options["lse_base"] = "2"
        merge(outs, lses, out=rows_of(out, layer, rows), lse=None if lse is None else lse[:, :rows], **options)

    return attention


def _check_output(layer: Layer, has_output_scale: bool) -> None:
    if layer.output_scale is not None and not has_output_scale:
        raise UnsupportedError("the merge", "a quantized output", "the parts that it merges are not quantized")


def _attend(
    request: attn_reference.Request,
    layer: Layer,
    parts: list[AttentionState],
    rng: random.Random,
    empty_lses: tuple[float, ...],
    bound: int,
) -> None:
    """Write a request's rows of each part. The sinks join one of the parts. Rows from `bound` on are empty in the first
    part."""
    keys = request.visible.shape[-1]
    inner = sorted(rng.choice((0, keys, rng.randint(0, keys))) for _ in parts[1:])
    position = torch.arange(keys, device=request.visible.device)
    has_prefix = torch.arange(request.rows.start, request.rows.stop, device=position.device)[:, None] < bound
    with_sinks = rng.randrange(len(parts)) if bound >= request.rows.stop else len(parts) - 1
    for i, (begin, end) in enumerate(zip((0, *inner), (*inner, keys), strict=True)):
        held = (begin <= position) & (position < end)
        if i == 0:
            held = held & has_prefix
        elif i == 1:
            held = held | ((position < end) & ~has_prefix)
        part = dataclasses.replace(request, visible=request.visible & held)
        found = attn_reference.attend(part, layer if i == with_sinks else dataclasses.replace(layer, sinks=None))
        write_state(parts[i], request.rows, found.out, found.lse, rng.choice(empty_lses))


def _support(device: str, output_dtypes: tuple[str, ...]) -> Support:
    return dataclasses.replace(EVERYTHING, output_dtypes=output_dtypes, max_tokens=128, max_seq_len=512)


def merge_target(name: str, load_merge: Callable[[], MergeFunction], takes: Merges = TWO_STATES, **fields: Any) -> Target:
    """A merge of two states as a target.

    Args:
        name: the name of the target.
        load_merge: imports and returns the function.
        takes: the arguments of the function beside two states.
        fields: other fields of Target.
    """
    return Target(
        name=name,
        attention=attention_by(load_merge, takes),
        support=lambda device: _support(device, EVERYTHING.output_dtypes if takes.has_output_scale else ()),
        rounding=lambda device: Rounding(keys_per_tile=64, merged_parts=MAX_PARTS),
        **fields,
    )


def parts_target(name: str, load_merge: Callable[[], MergeFunction], **fields: Any) -> Target:
    """A merge of any number of states as a target: see `merge_target`."""
    return Target(
        name=name,
        attention=parts_attention_by(load_merge, MAX_AT_ONCE),
        support=lambda device: _support(device, EVERYTHING.output_dtypes),
        rounding=lambda device: Rounding(keys_per_tile=64, merged_parts=2),
        **fields,
    )


def _triton_merge() -> MergeFunction:
    import attn_optimized

    merge = preceded(attn_optimized.merge_attn_states)
    return _in_some_form(merge, far.merge_attn_states)


def _triton_merge_parts() -> MergeFunction:
    import attn_optimized

    merge = preceded(attn_optimized.merge_attn_parts)
    return _in_some_form(merge, far.merge_attn_parts)


def _in_some_form(function: Callable[..., torch.Tensor], with_far_rows: Callable[..., None]) -> MergeFunction:
    """Some calls have no `out`. Some interpreted calls are launched as on a GPU that is not here, and some reach beyond 2^31
    elements."""

    def merge(*states: torch.Tensor, out: torch.Tensor, lse: torch.Tensor | None, **options: Any) -> None:
        rng = rng_of((states[0].shape, [state.stride() for state in states]))
        forms: list[MergeFunction] = [function]
        if "output_scale" not in options:
            forms.append(functools.partial(_returned, function))
        if interprets(states[0]):
            forms += [functools.partial(_on_a_gpu, function, rng), functools.partial(with_far_rows, function)]
        rng.choice(forms)(*states, out=out, lse=lse, **options)

    return merge


def _on_a_gpu(merge: MergeFunction, rng: random.Random, *states: torch.Tensor, **options: Any) -> None:
    """Launch as on a GPU that is not here. It is drawn after the form, which is then the same whatever GPUs there are."""
    planned(drawn_gpu(rng))(merge)(*states, **options)


def _returned(
    merge: Callable[..., torch.Tensor], *states: torch.Tensor, out: torch.Tensor, lse: torch.Tensor | None, **options: Any
) -> None:
    """Merge without `out`, and copy the tensor that is returned."""
    out.copy_(merge(*states, out=None, lse=lse, **options))


_MODES = dict.fromkeys(("far", "planned", "returned"), "a share of its merges is called so already")
TRITON_MERGE = merge_target(
    "triton-merge",
    _triton_merge,
    EVERY_OPTION,
    description="the Triton kernel merge_attn_states: parts of the keys by the reference, merged",
    unavailable=triton_unavailable,
    modules=modules,
    modes=_MODES,
    planned=planned,
)
TRITON_MERGE_PARTS = parts_target(
    "triton-merge-parts",
    _triton_merge_parts,
    description="the Triton kernel merge_attn_parts: parts of the keys by the reference, merged at once",
    unavailable=triton_unavailable,
    modules=modules,
    modes=_MODES,
    planned=planned,
)
