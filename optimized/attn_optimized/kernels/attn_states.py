"""Functions that the merges of attention states share."""

import triton
import triton.language as tl


@triton.jit
def load_lse(pointers, there):
    """LSEs of parts; -inf for an empty part, for one that is not there, and where a kernel returned NaN or +inf."""
    lse = tl.load(pointers, mask=there, other=float("-inf"))
    return tl.where((lse == lse) & (lse < float("inf")), lse, float("-inf"))


@triton.jit
def shift_of(largest):
    """[rows]: the shift of a row's LSEs: the largest of them, or 0 where all parts are empty."""
    return tl.where(largest == float("-inf"), 0.0, largest)


@triton.jit
def weight_of_output(weight, lse):
    """[rows]: the factor of a part's output, which is 0.0 where the part is empty: its product is -0.0 there.

    Any output plus -0.0 is the output itself; plus 0.0, -0.0 would be 0.0. Triton compiles a constant -0.0 as 0.0.
    """
    return tl.where(lse == float("-inf"), -1.0, weight)


@triton.jit
def normalized(weighted, total, output_scale_ptr):
    """Merged rows [rows, D] of the sums of outputs and of 1, each weighted by exp(LSE - shift): 0 where all parts are empty."""
    weighted = tl.where((total == 0.0)[:, None], 0.0, weighted)
    out = tl.div_rn(weighted, tl.where(total == 0.0, 1.0, total)[:, None])
    if output_scale_ptr is not None:
        out = tl.div_rn(out, tl.load(output_scale_ptr))
    return out
