"""Functions that LMDeploy's kernels call by names of their own, in a form that runs anywhere.

Triton's interpreter replaces `tl.exp2`, and not what a module has kept as `tl_exp2 = tl.exp2`. Their tanh is that of CUDA's
libdevice, which only compilers for NVIDIA have. So a soft cap is judged with the tanh of this module.
"""

import triton
import triton.language as tl


@triton.jit
def exp2(x):
    return tl.exp2(x)


@triton.jit
def log2(x):
    return tl.log2(x)


@triton.jit
def tanh(x):
    """tanh, in one exponential. It is that of minus the magnitude, which cannot overflow."""
    shrunk = tl.exp(-2.0 * tl.abs(x))
    magnitude = (1.0 - shrunk) / (1.0 + shrunk)
    return tl.where(x < 0, -magnitude, magnitude)
