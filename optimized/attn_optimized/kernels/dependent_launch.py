"""A kernel that begins while the kernel before it ends: NVIDIA's programmatic dependent launch, from sm90 on.

Without it, the reduction of a split decode is launched when the last program of the attention kernel has ended.
"""

import triton
import triton.language as tl

from attn_optimized.kernels.compiled_once import INTERPRETED


@triton.jit
def let_next_begin():
    """Let the next kernel begin once all programs of this kernel have come here or ended. It still waits for its inputs."""
    if not INTERPRETED:
        tl.extra.cuda.gdc_launch_dependents()


@triton.jit
def wait_for_previous():
    """Wait until the kernel before this one has ended and its stores are visible. Only for launches with launch_pdl."""
    if not INTERPRETED:
        tl.extra.cuda.gdc_wait()
