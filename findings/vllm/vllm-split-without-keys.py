"""TRITON_ATTN, keys split over programs (3D): the row of a request without keys is not written. The 2D kernel writes 0.

One request with a query and no keys, as cross-attention to no encoder tokens has. The output holds -1 before the call.
"""

import torch
from calls import unified_attention
from kernels import DEVICE, compare, load

HEAD_SIZE, SEGMENTS, ROWS = 32, 16, 128
q = torch.ones(1, 1, HEAD_SIZE, dtype=torch.float16, device=DEVICE)
cache = torch.ones(1, 16, 1, HEAD_SIZE, dtype=q.dtype, device=DEVICE)
module = load("vllm.v1.attention.ops.triton_unified_attention")
one = torch.ones(1, 1, device=DEVICE)
out = unified_attention(
    module,
    *(q, cache, cache),
    keys=0,
    max_seqlen_k=1,
    causal=False,
    k_descale=one,
    v_descale=one,
    seq_threshold_3D=ROWS,
    num_par_softmax_segments=SEGMENTS,
    softmax_segm_output=torch.empty(ROWS, 1, SEGMENTS, HEAD_SIZE, device=DEVICE),
    softmax_segm_max=torch.empty(ROWS, 1, SEGMENTS, device=DEVICE),
    softmax_segm_expsum=torch.empty(ROWS, 1, SEGMENTS, device=DEVICE),
)
compare(0.0, out[0, 0, 0])  # a sum of nothing
