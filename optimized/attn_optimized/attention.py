"""Attention over a paged KV cache and over dense tokens: checks, output tensors and launches."""

from collections.abc import Hashable, Iterator
from typing import Any, NamedTuple

import torch
from attn_contract import Batch, ContractError, Layer, Layout
from attn_contract.arguments import check_int
from attn_contract.forms import tensor_form
from attn_contract.rules import refuse_unnamed
from attn_contract.validation import check_attention_tensors, check_paged_attention, check_varlen_attention

from attn_optimized.device import architecture_of, compute_units_of
from attn_optimized.kernel_call import KernelCall, LaunchForm
from attn_optimized.kernels.attention import attention_kernel
from attn_optimized.kernels.reduce_parts import reduce_parts_kernel
from attn_optimized.launch import AttentionPlan, attention_plan, distance, in_units, reduce_tiles, row_grid
from attn_optimized.launch_table import Parameters
from attn_optimized.quantization import stored_format
from attn_optimized.strides import kv_cache_strides, scale_strides, token_scales

IMPLEMENTED_RULES = frozenset(
    {
        "window",
        "sink_tokens",
        "chunked_local",
        "ranges_clamped",
        "logits_soft_cap",
        "alibi_slopes",
        "sinks",
        "bidirectional_ranges",
        "qq_bias",
    }
)
"""The rules of a layer and of a step that the kernels implement. Any other is refused before a launch."""


def paged_attention(
    q: torch.Tensor,
    kv_cache: torch.Tensor,
    layer: Layer,
    batch: Batch,
    *,
    out: torch.Tensor | None = None,
    lse: torch.Tensor | None = None,
    batch_invariant: bool = False,
    validate: bool = False,
) -> torch.Tensor:
    """Attention of a ragged batch of queries over the KV cache: DECODER (prefill, extend, decode) and ENCODER_DECODER.

    Online softmax over tiles of keys as in FlashAttention-2 (Dao, arXiv 2307.08691), pages looked up key by key as in
    PagedAttention (Kwon et al., arXiv 2309.06180), the keys of few queries split over the device as in Flash-Decoding (Dao et
    al., 2023). Dots and softmax are float32; weights are rounded to q's dtype before they meet the values.

    Args:
        q: [T, H, D] float32, float16 or bfloat16; the last dimension is dense.
        kv_cache: as `layer.layout` says, of q's dtype or `layer.kv_cache_dtype`. It holds this step's keys and values already:
            see write_kv_cache.
        layer, batch: what is fixed for the layer, and what changes every step. Sinks of another dtype than float32 cost a
            conversion in every call.
        out: [T, H, D] or [T, H * D], written in the rows that a request owns; a new tensor if None, whose other rows hold
            anything. Of q's dtype, or float8 with `layer.output_scale`.
        lse: [H, T] float32, natural log of the softmax's denominator, sinks included; written likewise, unless None.
        batch_invariant: give a request bit by bit the same output whatever else is in the batch, and however its prefill is cut
            into steps of whole tiles (`attention_tiles(...).queries`). Keys are then never split, and tiles never small: few
            long requests do not fill a GPU.
        validate: check the values in tensors too, which waits for the device.

    Returns:
        out. Queries that see no key give 0, and an LSE of -inf or their sink.

    Raises:
        ContractError: the arguments contradict the contract. Nothing was written.
        UnsupportedError: a head size above 256, more than 64 query heads per KV head, or tensors on a CPU without Triton's
            interpreter. Nothing was written.
    """
    check_attention_tensors({"q": q, "kv_cache": kv_cache}, layer, batch, out, lse)
    form = _form(q, (kv_cache,), layer, batch, out, lse, batch_invariant)
    launches = _LAUNCHES.get(form)
    if launches is None or validate:
        check_paged_attention(q, kv_cache, layer, batch, out, lse, values=validate)
        refuse_unnamed("attn_optimized", IMPLEMENTED_RULES, layer, batch)
    out = q.new_empty(q.shape) if out is None else out
    if launches is None:
        plan = plan_of(q, layer, batch, batch_invariant=batch_invariant)
        launches = attention_launches(plan, q, paged_keys(kv_cache, layer, plan), layer, batch, out, lse)
        _remember(form, launches)
    keys = paged_tensors(kv_cache, layer, launches.plan)
    for call in attention_calls(launches, q, keys, layer, batch, out, lse):
        call.launch(q.device)
    return out


def varlen_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    layer: Layer,
    batch: Batch,
    *,
    out: torch.Tensor | None = None,
    lse: torch.Tensor | None = None,
    batch_invariant: bool = False,
    validate: bool = False,
) -> torch.Tensor:
    """Bidirectional attention of each request over its own tokens, no cache: ENCODER and ENCODER_ONLY.

    The same kernel as `paged_attention`'s.

    Args:
        q: [T, H, D] float32, float16 or bfloat16; the last dimension is dense, as that of k and v.
        k, v: [T_kv, HK, D] of q's dtype; request r's keys are the rows `query_start_loc[r]` to `query_start_loc[r + 1] - 1`.
        layer, batch: what is fixed for the layer, and what changes every step; `seq_lens` are the query lengths.
        out: [T, H, D] or [T, H * D], written in the rows that a request owns; a new tensor if None, whose other rows hold
            anything. Of q's dtype, or float8 with `layer.output_scale`.
        lse: [H, T] float32, natural log of the softmax's denominator, sinks included; written likewise, unless None.
        batch_invariant: give a request bit by bit the same output whatever else is in the batch.
        validate: check the values in tensors too, which waits for the device.

    Returns:
        out.

    Raises:
        ContractError: the arguments contradict the contract. Nothing was written.
        UnsupportedError: a head size above 256, more than 64 query heads per KV head, or tensors on a CPU without Triton's
            interpreter. Nothing was written.
    """
    check_attention_tensors({"q": q, "k": k, "v": v}, layer, batch, out, lse)
    form = _form(q, (k, v), layer, batch, out, lse, batch_invariant)
    launches = _LAUNCHES.get(form)
    if launches is None or validate:
        check_varlen_attention(q, k, v, layer, batch, out, lse, values=validate)
        refuse_unnamed("attn_optimized", IMPLEMENTED_RULES, layer, batch)
    out = q.new_empty(q.shape) if out is None else out
    if launches is None:
        plan = plan_of(q, layer, batch, batch_invariant=batch_invariant)
        launches = attention_launches(plan, q, dense_keys(k, v), layer, batch, out, lse)
        _remember(form, launches)
    for call in attention_calls(launches, q, KeyTensors(k, v), layer, batch, out, lse):
        call.launch(q.device)
    return out


def paged_attention_calls(
    q: torch.Tensor,
    kv_cache: torch.Tensor,
    layer: Layer,
    batch: Batch,
    plan: AttentionPlan,
    *,
    out: torch.Tensor,
    lse: torch.Tensor | None = None,
) -> Iterator[KernelCall]:
    """The launches of `paged_attention`, in order, each made when it is asked for: the device need not wait for the last one.

    Its tensors may be on meta, with a plan for a GPU that need not be here: nothing is checked or read.
    """
    keys = paged_keys(kv_cache, layer, plan)
    return attention_calls(attention_launches(plan, q, keys, layer, batch, out, lse), q, keys.tensors, layer, batch, out, lse)


def varlen_attention_calls(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    layer: Layer,
    batch: Batch,
    plan: AttentionPlan,
    *,
    out: torch.Tensor,
    lse: torch.Tensor | None = None,
) -> Iterator[KernelCall]:
    """The launches of `varlen_attention`: see `paged_attention_calls`."""
    keys = dense_keys(k, v)
    return attention_calls(attention_launches(plan, q, keys, layer, batch, out, lse), q, keys.tensors, layer, batch, out, lse)


def plan_of(
    q: torch.Tensor,
    layer: Layer,
    batch: Batch,
    *,
    batch_invariant: bool = False,
    architecture: str | None = None,
    compute_units: int | None = None,
    parameters: Parameters | None = None,
) -> AttentionPlan:
    """How a call is launched: its tiles, programs and splits. Reads shapes and host values only.

    Args:
        architecture, compute_units: of a GPU that need not be here; None: those of q's device.
        parameters: in place of those of the architecture's table.

    Raises:
        ContractError: only one of the two is given, or what is given is none of a GPU.
        UnsupportedError: as `paged_attention` does.
    """
    if architecture is None and compute_units is None:
        architecture, compute_units = architecture_of(q.device, q.dtype), compute_units_of(q.device)
    if architecture is None or compute_units is None:
        name = "architecture" if architecture is None else "compute_units"
        raise ContractError(name, None, "architecture and compute_units of one GPU, or neither")
    check_int("compute_units", compute_units, minimum=1)
    if parameters is not None and not isinstance(parameters, Parameters):
        raise ContractError("parameters", repr(parameters), "attn_optimized.launch_table.Parameters")
    return attention_plan(
        architecture,
        compute_units=compute_units,
        itemsize=q.element_size(),
        quantized=layer.kv_cache_dtype is not None,
        head_size=layer.head_size,
        num_heads=layer.num_heads,
        num_kv_heads=layer.num_kv_heads,
        num_tokens=batch.num_actual_tokens,
        num_requests=batch.num_requests,
        max_query_len=batch.max_query_len,
        max_seq_len=_rounded(batch.max_seq_len),
        window_keys=_window_keys(layer, batch),
        rules=_has_holes(layer, batch) or _has_bias(layer, batch),
        batch_invariant=batch_invariant,
        parameters=parameters,
    )


# numbers of keys that are planned alike, so that not every step of a decode is planned anew
ROUNDED_KEYS = 64
# so far above logits that it changes none of them
NO_CAP = 2.0**60


class KeyTensors(NamedTuple):
    """K and V as the attention kernel takes them, and their scales."""

    k: torch.Tensor
    v: torch.Tensor
    k_scale: torch.Tensor | None = None
    v_scale: torch.Tensor | None = None


class Keys(NamedTuple):
    """K and V, and how they lie in memory."""

    tensors: KeyTensors
    strides: dict[str, int]
    constants: dict[str, Any]


class Parts(NamedTuple):
    """The softmax's state for parts of the keys: scratch memory between two kernels. Rows that see no key of a part stay
    unwritten in `acc`."""

    acc: torch.Tensor
    """[parts, rows, H, D] float32: sums of weighted values"""
    row_max: torch.Tensor
    """[parts, H, rows] float32: largest logits, in base 2"""
    row_sum: torch.Tensor
    """[parts, H, rows] float32: sums of weights, relative to row_max; or that nothing is left to reduce"""

    @classmethod
    def empty(cls, num_parts: int, q: torch.Tensor, batch: Batch) -> "Parts":
        num_rows, (_, num_heads, head_size) = batch.num_actual_tokens, q.shape
        state = (num_parts, num_heads, num_rows)
        return cls(
            q.new_empty((num_parts, num_rows, num_heads, head_size), dtype=torch.float32),
            q.new_empty(state, dtype=torch.float32),
            q.new_empty(state, dtype=torch.float32),
        )


class AttentionLaunches(NamedTuple):
    """What calls of one form have in common: a plan, and what it launches; nothing without programs."""

    plan: AttentionPlan
    attention: LaunchForm | None
    reduction: LaunchForm | None


# what the layers of a model and the steps of a decode share; the oldest leave
_LAUNCHES: dict[Hashable, AttentionLaunches] = {}
_MOST_LAUNCHES = 4096


def paged_keys(kv_cache: torch.Tensor, layer: Layer, plan: AttentionPlan) -> Keys:
    """K and V of a cache."""
    tensors = paged_tensors(kv_cache, layer, plan)
    _, kv_format = stored_format(kv_cache, plan.architecture)
    cache = kv_cache_strides(kv_cache, layer)
    strides = {
        "stride_kv": cache.kv,
        "stride_block": cache.block,
        "stride_k_slot": cache.slot,
        "stride_k_head": cache.head,
        "stride_v_slot": cache.slot,
        "stride_v_head": cache.head,
    }
    constants = {
        "PAGED": True,
        "BLOCK_SIZE": cache.block_size,
        "INTERIOR": cache.interior,
        "X": 16 // kv_cache.element_size(),
        "KV_FORMAT": kv_format,
        "TOKEN_SCALES": token_scales(kv_cache, layer) is not None,
    }
    return Keys(tensors, strides, constants)


def paged_tensors(kv_cache: torch.Tensor, layer: Layer, plan: AttentionPlan) -> KeyTensors:
    """Those of `paged_keys`."""
    stored, _ = stored_format(kv_cache, plan.architecture)
    k_scale, v_scale = token_scales(kv_cache, layer) or (layer.k_scale, layer.v_scale)
    return KeyTensors(stored, stored, k_scale, v_scale)


def dense_keys(k: torch.Tensor, v: torch.Tensor) -> Keys:
    """K and V of tokens without a cache."""
    strides = {
        "stride_kv": 0,
        "stride_block": 0,
        "stride_k_slot": k.stride(0),
        "stride_k_head": k.stride(1),
        "stride_v_slot": v.stride(0),
        "stride_v_head": v.stride(1),
    }
    constants = {"PAGED": False, "BLOCK_SIZE": 1, "INTERIOR": "rows", "X": 1, "KV_FORMAT": "float", "TOKEN_SCALES": False}
    return Keys(KeyTensors(k, v), strides, constants)


def attention_launches(
    plan: AttentionPlan,
    q: torch.Tensor,
    keys: Keys,
    layer: Layer,
    batch: Batch,
    out: torch.Tensor,
    lse: torch.Tensor | None,
) -> AttentionLaunches:
    """What a plan launches: none, one, or one over split keys and one that reduces the parts."""
    if not plan.num_programs:
        return AttentionLaunches(plan, None, None)
    is_split = plan.splits > 1
    return AttentionLaunches(
        plan,
        attention_form(plan, q, keys, layer, batch, out, lse, partial=is_split, finishes=True),
        reduce_form(plan, plan.splits, layer, batch, out, lse) if is_split else None,
    )


def attention_calls(
    launches: AttentionLaunches,
    q: torch.Tensor,
    keys: KeyTensors,
    layer: Layer,
    batch: Batch,
    out: torch.Tensor,
    lse: torch.Tensor | None,
) -> Iterator[KernelCall]:
    """The launches with their tensors, and memory for the parts between two of them."""
    plan, attention, reduction = launches
    if attention is None:
        return
    parts = None if reduction is None else Parts.empty(plan.splits, q, batch)
    yield KernelCall(attention, attention_tensors(plan, q, keys, layer, batch, out, lse, parts))
    if reduction is not None and parts is not None:
        yield KernelCall(reduction, reduce_tensors(plan, parts, layer, batch, out, lse))


def part_call(
    plan: AttentionPlan, q: torch.Tensor, keys: Keys, layer: Layer, batch: Batch, parts: Parts, first_part: int
) -> KernelCall:
    """Attend to keys in `plan.splits` parts, the first of them `first_part`; write nothing but them."""
    form = attention_form(plan, q, keys, layer, batch, q, None, partial=True, first_part=first_part, finishes=False)
    return KernelCall(form, attention_tensors(plan, q, keys.tensors, layer, batch, q, None, parts))


def reduce_call(
    plan: AttentionPlan, parts: Parts, layer: Layer, batch: Batch, out: torch.Tensor, lse: torch.Tensor | None
) -> KernelCall:
    """Reduce all parts to the output and its LSE."""
    form = reduce_form(plan, len(parts.acc), layer, batch, out, lse)
    return KernelCall(form, reduce_tensors(plan, parts, layer, batch, out, lse))


def reduce_form(
    plan: AttentionPlan, num_parts: int, layer: Layer, batch: Batch, out: torch.Tensor, lse: torch.Tensor | None
) -> LaunchForm:
    """The kernel that reduces parts."""
    out, (_, out_format) = _by_head(out, layer), stored_format(out, plan.architecture)
    tiles = reduce_tiles(plan.architecture, head_size=layer.head_size, num_parts=num_parts)
    unit, strides = in_units(out.element_size(), stride_out_row=out.stride(0), stride_out_head=out.stride(1))
    num_rows = batch.num_actual_tokens
    return LaunchForm.of(
        reduce_parts_kernel,
        row_grid(tiles, num_rows * layer.num_heads),
        {**tiles.constants, "OUT_UNIT": unit, "OUT_FORMAT": out_format},
        tiles.options,
        has_lse=int(lse is not None),
        has_output_scale=int(layer.output_scale is not None),
        num_requests=batch.num_requests,
        num_heads=layer.num_heads,
        num_rows=num_rows,
        num_parts=num_parts,
        stride_lse_head=0 if lse is None else lse.stride(0),
        **strides,
    )


def reduce_tensors(
    plan: AttentionPlan, parts: Parts, layer: Layer, batch: Batch, out: torch.Tensor, lse: torch.Tensor | None
) -> dict[str, torch.Tensor | None]:
    """What that kernel reads and writes."""
    any_floats = batch.query_start_loc.view(torch.float32)
    return {
        "out_ptr": stored_format(out, plan.architecture)[0],
        "lse_ptr": any_floats if lse is None else lse,
        "acc_ptr": parts.acc,
        "row_max_ptr": parts.row_max,
        "row_sum_ptr": parts.row_sum,
        "output_scale_ptr": any_floats if layer.output_scale is None else layer.output_scale,
        "query_start_loc_ptr": batch.query_start_loc,
    }


def attention_form(
    plan: AttentionPlan,
    q: torch.Tensor,
    keys: Keys,
    layer: Layer,
    batch: Batch,
    out: torch.Tensor,
    lse: torch.Tensor | None,
    *,
    partial: bool,
    first_part: int = 0,
    finishes: bool,
) -> LaunchForm:
    """The attention kernel: for the output and its LSE, or for parts; tiles of one part are finished if `finishes`."""
    out, (_, out_format) = _by_head(out, layer), stored_format(out, plan.architecture)
    k_scale, v_scale = scale_strides(keys.tensors.k_scale), scale_strides(keys.tensors.v_scale)
    ranges, qq_bias = batch.bidirectional_ranges, batch.qq_bias
    left, right = layer.window
    holes = _has_holes(layer, batch)
    # behind inner tiles comes that of a window's or chunk's left edge, which is first where others' rules leave no inner ones
    has_left_edge = left >= 0 or layer.chunked_local is not None
    has_inner = not (plan.short_window or (plan.batch_invariant and has_left_edge))
    q_unit, row_strides = in_units(
        q.element_size(),
        stride_out_row=out.stride(0),
        stride_out_head=out.stride(1),
        stride_q_row=q.stride(0),
        stride_q_head=q.stride(1),
    )
    kv_unit, kv_strides = in_units(keys.tensors.k.element_size(), **keys.strides)
    constants = {
        **plan.tiles.constants,
        **keys.constants,
        "Q_UNIT": q_unit,
        "KV_UNIT": kv_unit,
        "OUT_FORMAT": out_format,
        "SIGN": (layer.scale > 0) - (layer.scale < 0),
        "HOLES": holes,
        "INNER": has_inner,
        "SOFT_CAP": bool(layer.logits_soft_cap) and layer.logits_soft_cap < NO_CAP,
        "BIAS": _has_bias(layer, batch),
        "PARTIAL": partial,
    }
    num_rows = batch.num_actual_tokens
    return LaunchForm.of(
        attention_kernel,
        plan.launch_grid,
        constants,
        plan.tiles.options,
        has_lse=int(lse is not None),
        has_sinks=int(layer.sinks is not None),
        has_alibi=int(layer.alibi_slopes is not None),
        has_causal=int(isinstance(batch.causal, torch.Tensor)),
        has_scales=int(keys.tensors.k_scale is not None and not keys.constants["TOKEN_SCALES"]),
        has_output_scale=int(layer.output_scale is not None),
        finishes=int(finishes),
        scale=layer.scale,
        cap=layer.logits_soft_cap or 1.0,
        left=distance(left),
        right=distance(right),
        ahead=0 if batch.causal is True else distance(-1),
        range_left=distance(left if layer.ranges_clamped else -1),
        sink_tokens=layer.sink_tokens if _has_sink_tokens(layer) else 0,
        chunk=layer.chunked_local or 0,
        num_ranges=0 if ranges is None else ranges.shape[1],
        bias_len=0 if qq_bias is None else len(qq_bias),
        num_requests=batch.num_requests,
        num_tokens=num_rows,
        queries_per_tile=plan.tiles.queries,
        one_each=int(plan.one_tile_each),
        heads_first=int(plan.heads_first),
        group=layer.num_heads // layer.num_kv_heads,
        group_inverse=-(-(1 << 16) * layer.num_kv_heads // layer.num_heads),
        num_splits=plan.splits,
        even_splits=plan.even_splits,
        least_tiles=plan.least_tiles,
        most_tiles=plan.most_tiles,
        first_part=first_part,
        stride_acc_part=num_rows * layer.num_heads * layer.head_size,
        stride_acc_row=layer.num_heads * layer.head_size,
        stride_state_part=layer.num_heads * num_rows,
        stride_state_head=num_rows,
        stride_lse_head=0 if lse is None else lse.stride(0),
        stride_table=0 if batch.block_table is None else batch.block_table.stride(0),
        stride_bias=0 if qq_bias is None else qq_bias.stride(0),
        stride_k_scale_block=k_scale.block,
        stride_k_scale_slot=k_scale.slot,
        stride_k_scale_head=k_scale.head,
        stride_v_scale_block=v_scale.block,
        stride_v_scale_slot=v_scale.slot,
        stride_v_scale_head=v_scale.head,
        **row_strides,
        **kv_strides,
    )


def attention_tensors(
    plan: AttentionPlan,
    q: torch.Tensor,
    keys: KeyTensors,
    layer: Layer,
    batch: Batch,
    out: torch.Tensor,
    lse: torch.Tensor | None,
    parts: Parts | None,
) -> dict[str, torch.Tensor | None]:
    """What that kernel reads and writes."""
    # some memory where an optional tensor is not there, as a flag says: None would compile anew for each combination
    any_ints = batch.query_start_loc
    any_floats = any_ints.view(torch.float32)
    return {
        "out_ptr": stored_format(out, plan.architecture)[0],
        "lse_ptr": any_floats if lse is None else lse,
        "acc_ptr": any_floats if parts is None else parts.acc,
        "row_max_ptr": any_floats if parts is None else parts.row_max,
        "row_sum_ptr": any_floats if parts is None else parts.row_sum,
        "q_ptr": q,
        "k_ptr": keys.k,
        "v_ptr": keys.v,
        "k_scale_ptr": any_floats if keys.k_scale is None else keys.k_scale,
        "v_scale_ptr": any_floats if keys.v_scale is None else keys.v_scale,
        "output_scale_ptr": any_floats if layer.output_scale is None else layer.output_scale,
        "sinks_ptr": any_floats if layer.sinks is None else layer.sinks.float(),
        "alibi_slopes_ptr": any_floats if layer.alibi_slopes is None else layer.alibi_slopes,
        "qq_bias_ptr": any_floats if batch.qq_bias is None else batch.qq_bias,
        "ranges_ptr": any_ints if batch.bidirectional_ranges is None else batch.bidirectional_ranges,
        "query_start_loc_ptr": batch.query_start_loc,
        "seq_lens_ptr": batch.seq_lens,
        "block_table_ptr": any_ints if batch.block_table is None else batch.block_table,
        "causal_ptr": batch.causal if isinstance(batch.causal, torch.Tensor) else any_ints.view(torch.bool),
    }


def _form(
    q: torch.Tensor,
    keys: tuple[torch.Tensor, ...],
    layer: Layer,
    batch: Batch,
    out: torch.Tensor | None,
    lse: torch.Tensor | None,
    batch_invariant: bool,
) -> Hashable:
    """All that checks and launches depend on, beside what `check_attention_tensors` looks at in every call."""
    # scales in the rows of a cache are aligned
    offset = keys[0].storage_offset() if layer.layout is Layout.CONTENT_PACKED_SCALED else 0
    tensors = (tensor_form(q), *map(tensor_form, keys), tensor_form(out), tensor_form(lse))
    return (*tensors, layer.form, batch.form, _rounded(batch.max_seq_len), batch_invariant, q.device, offset)


def _remember(form: Hashable, launches: AttentionLaunches) -> None:
    if len(_LAUNCHES) == _MOST_LAUNCHES:
        _LAUNCHES.pop(next(iter(_LAUNCHES)))
    _LAUNCHES[form] = launches


def _rounded(max_seq_len: int) -> int:
    return -(-max_seq_len // ROUNDED_KEYS) * ROUNDED_KEYS


def _window_keys(layer: Layer, batch: Batch) -> int | None:
    """That a query sees through a window or in its chunk, at most; None: all of its request's, or others beside them."""
    if _has_sink_tokens(layer) or batch.bidirectional_ranges is not None:
        return None
    left, right = layer.window
    ahead = 0 if batch.causal is True else right
    seen = [left + 1 + ahead] if min(left, ahead) >= 0 else []
    if layer.chunked_local is not None:
        seen.append(layer.chunked_local)
    return min(seen, default=None)


def _has_holes(layer: Layer, batch: Batch) -> bool:
    """Whether what a query sees may be more than one row of keys."""
    tensors = batch.bidirectional_ranges, batch.qq_bias
    return _has_sink_tokens(layer) or layer.chunked_local is not None or any(tensor is not None for tensor in tensors)


def _has_sink_tokens(layer: Layer) -> bool:
    """Whether they are seen apart from others: without an edge, a window holds the first keys anyway."""
    return layer.sink_tokens > 0 and max(layer.window) >= 0


def _has_bias(layer: Layer, batch: Batch) -> bool:
    """Whether something is added to logits."""
    return layer.alibi_slopes is not None or batch.qq_bias is not None


def _by_head(out: torch.Tensor, layer: Layer) -> torch.Tensor:
    """[T, H, D] of either shape of an output."""
    return out if out.dim() == 3 else out.view(len(out), layer.num_heads, layer.head_size)
