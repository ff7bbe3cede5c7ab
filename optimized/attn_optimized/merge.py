"""Merging attention over disjoint sets of keys: over two, and over any number."""

import math
from collections.abc import Callable, Hashable
from typing import Any

import torch
from attn_contract.signatures import tensor_signature
from attn_contract.validation import LseBase, check_merge_attn_parts, check_merge_attn_states

from attn_optimized.device import architecture_of
from attn_optimized.kernel_call import KernelCall, Launch
from attn_optimized.kernels.merge_attn_parts import merge_attn_parts_kernel
from attn_optimized.kernels.merge_attn_states import merge_attn_states_kernel
from attn_optimized.launch.tiles import row_grid, row_tiles
from attn_optimized.launch.units import in_units
from attn_optimized.quantization import stored_format
from attn_optimized.signature_cache import SignatureCache
from attn_optimized.strides import without_idle_strides

# one for all layers of a model
_LAUNCHES: SignatureCache[Launch] = SignatureCache()


def merge_attn_states(
    out_a: torch.Tensor,
    lse_a: torch.Tensor,
    out_b: torch.Tensor,
    lse_b: torch.Tensor,
    *,
    out: torch.Tensor | None = None,
    lse: torch.Tensor | None = None,
    prefill_tokens_with_context: int | None = None,
    output_scale: torch.Tensor | None = None,
) -> torch.Tensor:
    """Attention over the union of two disjoint sets of keys, from the attention over each (FlashInfer, arXiv 2501.01005).

    `out = (exp(lse_a) * out_a + exp(lse_b) * out_b) / exp(lse)` with `exp(lse) = exp(lse_a) + exp(lse_b)`, in float32. A side
    whose LSE is -inf, +inf or NaN saw no key: its output is ignored, even a NaN, and the other side comes out unchanged.

    Args:
        out_a, out_b: [T, H, D] float32, float16 or bfloat16; the last dimension is dense.
        lse_a, lse_b: [H, T] float32, natural logs.
        out: [T, H, D], may be out_a or out_b itself; a new tensor if None. Float8 with an output_scale, which needs it.
        lse: [H, T] float32, may be lse_a or lse_b itself; not computed if None.
        prefill_tokens_with_context: the rows from this one on have no prefix: side a is empty there, whatever it holds, and is
            not read. None: no such rows.
        output_scale: [] or [1] float32: out is of a float8 type and holds the merged output / scale.

    Returns:
        out. Where neither side saw a key, out is 0 and the LSE is -inf.

    Raises:
        ContractError: the arguments contradict the contract. Nothing was written.
        UnsupportedError: rows of more than MAX_ROW_SIZE dims, or tensors on a CPU without Triton's interpreter. Nothing was
            written.
    """
    check_merge_attn_states(out_a, lse_a, out_b, lse_b, out, lse, prefill_tokens_with_context, output_scale)
    out = out_a.new_empty(out_a.shape) if out is None else out
    merge_attn_states_call(
        out_a,
        lse_a,
        out_b,
        lse_b,
        out=out,
        lse=lse,
        prefill_tokens_with_context=prefill_tokens_with_context,
        output_scale=output_scale,
    ).run(out_a.device)
    return out


def merge_attn_states_call(
    out_a: torch.Tensor,
    lse_a: torch.Tensor,
    out_b: torch.Tensor,
    lse_b: torch.Tensor,
    *,
    out: torch.Tensor,
    lse: torch.Tensor | None = None,
    prefill_tokens_with_context: int | None = None,
    output_scale: torch.Tensor | None = None,
    architecture: str | None = None,
) -> KernelCall:
    """The launch of `merge_attn_states`. No argument is checked, and no element is read.

    Args:
        architecture: that of the GPU to launch on, which need not be in this machine if the tensors are on meta; None: that of
            out_a's device.
    """
    out, out_a, out_b = (without_idle_strides(tensor) for tensor in (out, out_a, out_b))
    prefill_tokens = len(out) if prefill_tokens_with_context is None else prefill_tokens_with_context
    return _merge_call(
        merge_attn_states_kernel,
        architecture or architecture_of(out_a.device, out_a.dtype),
        out,
        {
            "lse_ptr": lse,
            "out_a_ptr": out_a,
            "lse_a_ptr": lse_a,
            "out_b_ptr": out_b,
            "lse_b_ptr": lse_b,
            "output_scale_ptr": output_scale,
        },
        prefill_tokens,
        lambda: {
            "stride_a_row": out_a.stride(0),
            "stride_a_head": out_a.stride(1),
            "stride_b_row": out_b.stride(0),
            "stride_b_head": out_b.stride(1),
        },
        lambda: {
            "prefill_tokens_with_context": prefill_tokens,
            "stride_lse_a": lse_a.stride(0),
            "stride_lse_b": lse_b.stride(0),
        },
    )


def merge_attn_parts(
    outs: torch.Tensor,
    lses: torch.Tensor,
    *,
    out: torch.Tensor | None = None,
    lse: torch.Tensor | None = None,
    lse_base: LseBase = "e",
    output_scale: torch.Tensor | None = None,
) -> torch.Tensor:
    """Attention over the union of N disjoint sets of keys: `merge_attn_states` for any number of states at once.

    Args:
        outs: [N, T, H, D] float32, float16 or bfloat16, N at least 1; the last dimension is dense.
        lses: [N, H, T] float32, any strides. A part whose LSE is -inf, +inf or NaN saw no key, and its output is not read.
        out: [T, H, D], memory of its own; a new tensor if None. Float8 with an output_scale, which needs it.
        lse: [H, T] float32, a natural log whatever `lse_base` is, memory of its own; not computed if None.
        lse_base: "2" if `lses` are logs of base 2.
        output_scale: [] or [1] float32: out is of a float8 type and holds the merged output / scale.

    Returns:
        out. Where no part saw a key, out is 0 and the LSE is -inf.

    Raises:
        ContractError: the arguments contradict the contract. Nothing was written.
        UnsupportedError: rows of more than MAX_ROW_SIZE dims, or tensors on a CPU without Triton's interpreter. Nothing was
            written.
    """
    check_merge_attn_parts(outs, lses, out, lse, lse_base, output_scale)
    out = outs.new_empty(outs.shape[1:]) if out is None else out
    merge_attn_parts_call(outs, lses, out=out, lse=lse, lse_base=lse_base, output_scale=output_scale).run(outs.device)
    return out


def merge_attn_parts_call(
    outs: torch.Tensor,
    lses: torch.Tensor,
    *,
    out: torch.Tensor,
    lse: torch.Tensor | None = None,
    lse_base: LseBase = "e",
    output_scale: torch.Tensor | None = None,
    architecture: str | None = None,
) -> KernelCall:
    """The launch of `merge_attn_parts`: see `merge_attn_states_call`."""
    out, outs = without_idle_strides(out), without_idle_strides(outs)
    return _merge_call(
        merge_attn_parts_kernel,
        architecture or architecture_of(outs.device, outs.dtype),
        out,
        {"lse_ptr": lse, "outs_ptr": outs, "lses_ptr": lses, "output_scale_ptr": output_scale},
        lse_base,
        lambda: {
            "stride_outs_part": outs.stride(0),
            "stride_outs_row": outs.stride(1),
            "stride_outs_head": outs.stride(2),
        },
        lambda: {
            "num_parts": len(outs),
            "to_base_2": 1.0 if lse_base == "2" else math.log2(math.e),
            "to_base_e": math.log(2.0) if lse_base == "2" else 1.0,
            "stride_lses_part": lses.stride(0),
            "stride_lses_head": lses.stride(1),
            "stride_lses_token": lses.stride(2),
        },
    )


def _merge_call(
    kernel: Any,
    architecture: str,
    out: torch.Tensor,
    tensors: dict[str, torch.Tensor | None],
    chosen: Hashable,
    strides_in_units: Callable[[], dict[str, int]],
    numbers: Callable[[], dict[str, int | float]],
) -> KernelCall:
    """The launch of a merge, which calls of one signature share, with its tensors.

    Args:
        tensors: all tensors but the output, by the kernel's names.
        chosen: everything that the launch depends on in addition to tensors.
        strides_in_units, numbers: other strides and numbers than those of `out` and `lse`, by the kernel's names.
    """
    stored_out, out_format = stored_format(out, architecture)
    tensors = {"out_ptr": stored_out, **tensors}

    def launch() -> Launch:
        (num_tokens, num_heads, head_size), lse = out.shape, tensors["lse_ptr"]
        tiles = row_tiles(architecture, head_size=head_size)
        rows = {"stride_out_row": out.stride(0), "stride_out_head": out.stride(1)} | strides_in_units()
        unit, strides = in_units(out.element_size(), **rows)
        return Launch.of(
            kernel,
            row_grid(tiles, num_tokens * num_heads),
            {**tiles.constants, "STRIDE_UNIT": unit, "OUT_FORMAT": out_format},
            tiles.options,
            num_tokens=num_tokens,
            num_heads=num_heads,
            stride_lse=0 if lse is None else lse.stride(0),
            **strides,
            **numbers(),
        )

    signature = (kernel, architecture, out.device, out.dtype, chosen, *map(tensor_signature, tensors.values()))
    return KernelCall(_LAUNCHES.shared(signature, launch), tensors)
