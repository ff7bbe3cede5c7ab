"""Merging attention over two disjoint sets of keys."""

import torch
from attn_contract.validation import check_merge_attn_states

from attn_optimized.device import architecture_of
from attn_optimized.kernel_call import KernelCall, Launch
from attn_optimized.kernels.merge_attn_states import merge_attn_states_kernel
from attn_optimized.launch.tiles import row_grid, row_tiles
from attn_optimized.launch.units import in_units


def merge_attn_states(
    out_a: torch.Tensor,
    lse_a: torch.Tensor,
    out_b: torch.Tensor,
    lse_b: torch.Tensor,
    *,
    out: torch.Tensor | None = None,
    lse: torch.Tensor | None = None,
) -> torch.Tensor:
    """Attention over the union of two disjoint sets of keys, from the attention over each (FlashInfer, arXiv 2501.01005).

    `out = (exp(lse_a) * out_a + exp(lse_b) * out_b) / exp(lse)` with `exp(lse) = exp(lse_a) + exp(lse_b)`, in float32. A side
    whose LSE is -inf saw no key: its output is ignored, even a NaN, and the other side comes out unchanged.

    Args:
        out_a, out_b: [T, H, D] float32, float16 or bfloat16; the last dimension is dense.
        lse_a, lse_b: [H, T] float32, natural logs.
        out: [T, H, D], may be out_a or out_b itself; a new tensor if None.
        lse: [H, T] float32, may be lse_a or lse_b itself; not computed if None.

    Returns:
        out. Where neither side saw a key, out is 0 and the LSE is -inf.

    Raises:
        ContractError: the arguments contradict the contract. Nothing was written.
        UnsupportedError: tensors on a CPU without Triton's interpreter. Nothing was written.
    """
    check_merge_attn_states(out_a, lse_a, out_b, lse_b, out, lse)
    out = out_a.new_empty(out_a.shape) if out is None else out
    merge_attn_states_call(out_a, lse_a, out_b, lse_b, out=out, lse=lse).run(out_a.device)
    return out


def merge_attn_states_call(
    out_a: torch.Tensor,
    lse_a: torch.Tensor,
    out_b: torch.Tensor,
    lse_b: torch.Tensor,
    *,
    out: torch.Tensor,
    lse: torch.Tensor | None = None,
    architecture: str | None = None,
) -> KernelCall:
    """The launch of `merge_attn_states`. No argument is checked, and no element is read.

    Args:
        architecture: of the GPU to launch on, which need not be here if the tensors are on meta; None: of out_a's device.
    """
    num_tokens, num_heads, head_size = out_a.shape
    tiles = row_tiles(architecture or architecture_of(out_a.device, out_a.dtype), head_size=head_size)
    unit, strides = in_units(
        out.element_size(),
        stride_out_row=out.stride(0),
        stride_out_head=out.stride(1),
        stride_a_row=out_a.stride(0),
        stride_a_head=out_a.stride(1),
        stride_b_row=out_b.stride(0),
        stride_b_head=out_b.stride(1),
    )
    launch = Launch.of(
        merge_attn_states_kernel,
        row_grid(tiles, num_tokens * num_heads),
        {**tiles.constants, "STRIDE_UNIT": unit},
        tiles.options,
        num_tokens=num_tokens,
        num_heads=num_heads,
        stride_lse=0 if lse is None else lse.stride(0),
        stride_lse_a=lse_a.stride(0),
        stride_lse_b=lse_b.stride(0),
        **strides,
    )
    tensors = {
        "out_ptr": out,
        "lse_ptr": lse,
        "out_a_ptr": out_a,
        "lse_a_ptr": lse_a,
        "out_b_ptr": out_b,
        "lse_b_ptr": lse_b,
    }
    return KernelCall(launch, tensors)
