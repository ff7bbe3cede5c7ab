"""Parts of the keys: the memory between the attention kernel, which writes parts, and the kernel that reduces them."""

from typing import NamedTuple

import torch
from attn_contract import Batch, Layer

from attn_optimized.device import has_dependent_launches
from attn_optimized.kernel_call import Launch
from attn_optimized.kernels.reduce_parts import reduce_parts_kernel
from attn_optimized.launch.call import AttentionCall
from attn_optimized.launch.plan import AttentionPlan
from attn_optimized.launch.tiles import reduce_grid, reduce_tiles
from attn_optimized.launch.units import in_units
from attn_optimized.quantization import stored_format
from attn_optimized.strides import without_idle_strides


class Parts(NamedTuple):
    """The softmax's state for parts of the keys. Rows that see no key of a part stay unwritten in `acc`."""

    acc: torch.Tensor
    """[parts, rows, H, Dv] float32: sums of weighted values"""
    row_max: torch.Tensor
    """[parts, H, rows] float32: largest logits, in base 2"""
    row_sum: torch.Tensor
    """[parts, H, rows] float32: sums of weights, relative to row_max; or FINISHED if nothing is left to reduce"""

    @classmethod
    def empty(cls, num_parts: int, q: torch.Tensor, layer: Layer, batch: Batch) -> "Parts":
        """Memory for the parts of a batch, on q's device."""
        num_rows, num_heads = batch.num_actual_tokens, layer.num_heads
        state = (num_parts, num_heads, num_rows)
        return cls(
            q.new_empty((num_parts, num_rows, num_heads, layer.v_head_size), dtype=torch.float32),
            q.new_empty(state, dtype=torch.float32),
            q.new_empty(state, dtype=torch.float32),
        )


def reduce_launch(plan: AttentionPlan, call: AttentionCall, num_parts: int) -> Launch:
    """The launch that reduces parts to the output and its LSE."""
    layer, batch, lse = call.layer, call.batch, call.lse
    out = rows_by_head(call)
    num_rows = batch.num_actual_tokens
    tiles = reduce_tiles(plan.architecture, head_size=layer.v_head_size, num_parts=num_parts)
    is_dependent = has_dependent_launches(plan.architecture)
    out_unit, out_strides = in_units(out.element_size(), stride_out_row=out.stride(0), stride_out_head=out.stride(1))
    return Launch.of(
        reduce_parts_kernel,
        reduce_grid(tiles, num_rows * layer.num_heads),
        {
            **tiles.constants,
            "OUT_UNIT": out_unit,
            "OUT_FORMAT": stored_format(out, plan.architecture)[1],
            "IS_DEPENDENT": is_dependent,
        },
        tiles.options | ({"launch_pdl": True} if is_dependent else {}),
        has_lse=int(lse is not None),
        has_output_scale=int(layer.output_scale is not None),
        num_requests=batch.num_requests,
        num_heads=layer.num_heads,
        num_rows=num_rows,
        num_parts=num_parts,
        stride_lse_head=0 if lse is None else lse.stride(0),
        **out_strides,
    )


def reduce_tensors(plan: AttentionPlan, call: AttentionCall, parts: Parts) -> dict[str, torch.Tensor | None]:
    """The tensors of that launch, by the kernel's names."""
    # other memory stands for an optional tensor that is not given, and a flag tells the kernel so
    any_floats = parts.row_max
    output_scale = call.layer.output_scale
    return {
        "out_ptr": stored_format(call.out, plan.architecture)[0],
        "lse_ptr": any_floats if call.lse is None else call.lse,
        "acc_ptr": parts.acc,
        "row_max_ptr": parts.row_max,
        "row_sum_ptr": parts.row_sum,
        "output_scale_ptr": any_floats if output_scale is None else output_scale,
        "query_start_loc_ptr": call.batch.query_start_loc,
    }


def rows_by_head(call: AttentionCall) -> torch.Tensor:
    """The output as [T, H, D], from either of its two shapes."""
    out, layer = call.out, call.layer
    return without_idle_strides(out if out.dim() == 3 else out.view(len(out), layer.num_heads, layer.v_head_size))
