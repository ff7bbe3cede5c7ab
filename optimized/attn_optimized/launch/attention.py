"""The launch of the attention kernel: its Kind, its numbers and its tensors."""

from functools import cache
from typing import Any

import torch
from attn_contract import Batch, Layer

from attn_optimized.device import INTERPRETER, has_bfloat16_conversion, has_dependent_launches
from attn_optimized.kernel_call import Launch
from attn_optimized.kernels.arguments import Kind
from attn_optimized.kernels.attention import attention_kernel
from attn_optimized.launch.call import AttentionCall, KeyForm
from attn_optimized.launch.parts import Parts, rows_by_head
from attn_optimized.launch.plan import AttentionPlan
from attn_optimized.launch.rules import has_bias, has_left_edge, has_other_masks, has_soft_cap, rule_numbers
from attn_optimized.launch.units import in_units
from attn_optimized.launch.workload import MIN_DOT, itemsize_of_dots
from attn_optimized.quantization import stored_format
from attn_optimized.strides import scale_strides, without_idle_strides


def attention_launch(plan: AttentionPlan, call: AttentionCall, first_part: int | None = None) -> Launch:
    """The launch that writes a call's output, or only parts.

    Args:
        first_part: write only `plan.splits` parts, the first of them at this index. None: write the output of each tile of
            queries whose keys are not split, and if the plan has splits, parts of the other tiles.
    """
    layer, batch, out = call.layer, call.batch, rows_by_head(call)
    q, q_scale = without_idle_strides(call.q), layer.q_scale
    q_unit, row_strides = in_units(
        q.element_size(),
        stride_out_row=out.stride(0),
        stride_out_head=out.stride(1),
        stride_q_row=q.stride(0),
        stride_q_head=q.stride(1),
    )
    keys = call.keys.tensors(layer, plan.architecture)
    form = call.keys.form(layer, plan.architecture)
    kv_unit, kv_strides = in_units(keys.k.element_size(), **form.strides)
    is_partial, has_unmasked_loop = plan.splits > 1 or first_part is not None, _has_unmasked_loop(plan, layer)
    kind = Kind(
        **plan.tiles.kind,
        **form.kind,
        q_unit=q_unit,
        q_format=stored_format(call.q, plan.architecture)[1],
        q_scale_step=int(q_scale is not None and q_scale.numel() > 1),
        kv_unit=kv_unit,
        out_format=stored_format(out, plan.architecture)[1],
        **_latent_steps(plan, call, form),
        **_value_pairs(plan, call, form, kv_unit),
        has_integer_bfloat16=not has_bfloat16_conversion(plan.architecture),
        scale_sign=(layer.scale > 0) - (layer.scale < 0),
        has_other_masks=has_other_masks(layer, batch),
        selection_unit=layer.selection_unit or 0,
        key_unit=layer.tokens_per_key,
        has_unmasked_loop=has_unmasked_loop,
        # faster on an H200; on RDNA it costs registers that spill
        skips_masked_loop=is_partial and has_unmasked_loop and plan.architecture in ("sm90", INTERPRETER),
        has_soft_cap=has_soft_cap(layer),
        has_bias=has_bias(layer, batch),
        is_partial=is_partial,
        has_dependent=is_partial and has_dependent_launches(plan.architecture),
    )
    return Launch.of(
        attention_kernel,
        plan.launch_grid,
        {"KIND": kind},
        plan.tiles.options,
        has_lse=int(call.lse is not None),
        has_sinks=int(layer.sinks is not None),
        has_alibi_slopes=int(layer.alibi_slopes is not None),
        has_causal=int(isinstance(batch.causal, torch.Tensor)),
        has_scales=int(keys.k_scale is not None and keys.k_scale.dim() < 3),  # else of tokens or of their dims
        has_output_scale=int(layer.output_scale is not None),
        writes_output=int(first_part is None),
        first_part=first_part or 0,
        **rule_numbers(layer, batch),
        **_sizes(plan, batch),
        **row_strides,
        **kv_strides,
        **scale_strides(keys.k_scale).named("stride_k_scale"),
        **scale_strides(keys.v_scale).named("stride_v_scale"),
        **_state_strides(layer, batch),
        stride_lse_head=0 if call.lse is None else call.lse.stride(0),
        stride_block_table=0 if batch.block_table is None else batch.block_table.stride(0),
        stride_qq_bias=0 if batch.qq_bias is None else batch.qq_bias.stride(0),
        **_selection(batch.selected),
    )


def attention_tensors(plan: AttentionPlan, call: AttentionCall, parts: Parts | None) -> dict[str, torch.Tensor | None]:
    """The tensors of that launch, by the kernel's names."""
    q, keys, layer, batch, out, lse = call
    k, v, k_scale, v_scale = keys.tensors(layer, plan.architecture)
    any_ints = batch.query_start_loc
    any_floats, any_bools = stand_ins(any_ints.device)
    return {
        "out_ptr": stored_format(out, plan.architecture)[0],
        "lse_ptr": any_floats if lse is None else lse,
        "acc_ptr": any_floats if parts is None else parts.acc,
        "row_max_ptr": any_floats if parts is None else parts.row_max,
        "row_sum_ptr": any_floats if parts is None else parts.row_sum,
        "q_ptr": stored_format(q, plan.architecture)[0],
        "q_scale_ptr": layer.q_scale,
        "k_ptr": k,
        "v_ptr": v,
        "k_scale_ptr": any_floats if k_scale is None else k_scale,
        "v_scale_ptr": any_floats if v_scale is None else v_scale,
        "output_scale_ptr": any_floats if layer.output_scale is None else layer.output_scale,
        "sinks_ptr": any_floats if layer.sinks is None else layer.sinks.float(),
        "alibi_slopes_ptr": any_floats if layer.alibi_slopes is None else layer.alibi_slopes,
        "qq_bias_ptr": any_floats if batch.qq_bias is None else batch.qq_bias,
        "bidirectional_ranges_ptr": any_ints if batch.bidirectional_ranges is None else batch.bidirectional_ranges,
        "query_start_loc_ptr": batch.query_start_loc,
        "seq_lens_ptr": batch.seq_lens,
        "block_table_ptr": any_ints if batch.block_table is None else batch.block_table,
        "selected_ptr": batch.selected,
        "causal_ptr": batch.causal if isinstance(batch.causal, torch.Tensor) else any_bools,
    }


@cache
def stand_ins(device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Memory, as floats and as bools, that stands for optional tensors that are not given. Flags tell the kernel not to read
    it.

    If None stood for these tensors, the kernel would be compiled anew for each combination. Each device has this memory once,
    so no tensor of a step is kept alive.
    """
    return torch.zeros(1, device=device), torch.zeros(1, dtype=torch.bool, device=device)


def _value_pairs(plan: AttentionPlan, call: AttentionCall, form: KeyForm, kv_unit: int) -> dict[str, Any]:
    """Constants by which tiles of few rows load V, and K of a latent cache, by two dims at once, and convert them."""
    has_pairs = has_value_pairs(plan, call.layer, form, kv_unit)
    is_e4m3fn = call.layer.kv_cache_dtype is torch.float8_e4m3fn
    return {
        "has_value_pairs": has_pairs,
        "has_float16_dots": has_pairs and is_e4m3fn and call.q.dtype is torch.bfloat16,
    }


def has_value_pairs(plan: AttentionPlan, layer: Layer, form: KeyForm, kv_unit: int) -> bool:
    """True if pairs of dims can be loaded, and are faster: see kernels/load.py.

    Pairs can be loaded if elements have one byte, the dims of a slot are a row, and each row begins at an even address. AMD's
    GPUs have no ldmatrix: with pairs the loops of a decode have as many instructions on gfx942, more on gfx1201, and need more
    registers on both.
    """
    if not form.is_paged or plan.architecture.startswith("gfx"):
        return False
    # a dot over half of the dims of a latent key has at least MIN_DOT of them
    has_rows = form.interior == "rows" or (form.interior == "latent" and plan.tiles.widths.block_d >= 2 * MIN_DOT)
    is_even = kv_unit % 2 == 0 and layer.v_head_size % 2 == 0 and form.begins_even
    return form.x == 16 and has_rows and is_even


def _latent_steps(plan: AttentionPlan, call: AttentionCall, form: KeyForm) -> dict[str, Any]:
    """Constants of the loops over a latent cache by which weights are computed, as measured on an H200.

    The interpreter uses the constants of sm90. Sums of weights in columns take a register for each key of a thread. Tiles of
    few rows have such sums, and so have larger tiles, unless they hold decoded keys in registers.
    """
    tiles, architecture = plan.tiles, plan.architecture
    is_measured = architecture in ("sm90", INTERPRETER) and itemsize_of_dots(call.q) == 2
    is_latent = form.interior == "latent"
    has_few_rows = tiles.block_m == MIN_DOT
    has_hidden_dots = is_measured and is_latent and not has_few_rows
    return {
        "has_hidden_dots": has_hidden_dots,
        "has_sums_in_columns": is_measured and is_latent and (has_few_rows or call.layer.kv_cache_dtype is None),
    }


def _has_unmasked_loop(plan: AttentionPlan, layer: Layer) -> bool:
    """True if tiles that need no mask have a loop of their own.

    This loop comes first, and the tile at the left edge of a window or chunk after it. In a batch whose other rules leave no
    unmasked tile, the tile at the left edge comes first. So a batch-invariant call, which must sum a request's keys in one
    order whatever else is in the batch, has no loop for unmasked tiles if there is a left edge.
    """
    if layer.selection_unit is not None:
        return False  # any entry may be negative
    return not (plan.has_short_window or (plan.batch_invariant and has_left_edge(layer)))


def _sizes(plan: AttentionPlan, batch: Batch) -> dict[str, int]:
    """Sizes of the batch, of tiles and of splits."""
    return {
        "num_requests": batch.num_requests,
        "num_tokens": batch.num_actual_tokens,
        "queries_per_tile": plan.tiles.queries,
        "one_tile_per_request": int(plan.one_tile_per_request),
        "heads_first": int(plan.heads_first),
        "heads_per_group": plan.tiles.group,
        "inverse_heads_per_group": -(-(1 << 16) // plan.tiles.group),
        "num_splits": plan.splits,
        "balanced_splits": plan.balanced_splits,
        "filling_splits": plan.filling_splits,
        "work_shares": plan.work_shares,
        "min_tiles_per_split": plan.min_tiles_per_split,
        "max_tiles": plan.max_tiles,
    }


def _selection(selected: torch.Tensor | None) -> dict[str, int]:
    """The number of entries in a row of the selection, and its strides. All KV heads may share one selection."""
    if selected is None:
        return {"num_selected": 0, "stride_selected_head": 0, "stride_selected_row": 0}
    return {
        "num_selected": selected.shape[2],
        "stride_selected_head": selected.stride(0) if len(selected) > 1 else 0,
        "stride_selected_row": selected.stride(1),
    }


def _state_strides(layer: Layer, batch: Batch) -> dict[str, int]:
    """The strides of Parts, which are dense. The strides of `acc` count rows of values."""
    num_rows, num_heads = batch.num_actual_tokens, layer.num_heads
    return {
        "stride_acc_part": num_rows * num_heads,
        "stride_acc_row": num_heads,
        "stride_state_part": num_heads * num_rows,
        "stride_state_head": num_rows,
    }
