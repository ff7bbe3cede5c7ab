"""TRITON_ATTN, keys split over programs (3D): the row of a request without keys is not written. The 2D kernel writes 0.

One request with a query and no keys, as cross-attention to no encoder tokens has. The output holds -1 before the call.
"""

import torch
from kernels import DEVICE, compare, ints, load

HEAD_SIZE, SEGMENTS, ROWS = 32, 16, 128
q = torch.ones(1, 1, HEAD_SIZE, dtype=torch.float16, device=DEVICE)
cache = torch.ones(1, 16, 1, HEAD_SIZE, dtype=q.dtype, device=DEVICE)
out = torch.full_like(q, -1.0)
load("vllm.v1.attention.ops.triton_unified_attention").unified_attention(
    q=q,
    k=cache,
    v=cache,
    out=out,
    cu_seqlens_q=ints(0, 1),
    max_seqlen_q=1,
    seqused_k=ints(0),
    max_seqlen_k=1,
    softmax_scale=1.0,
    causal=False,
    window_size=(-1, -1),
    block_table=ints([0, 0, 0, 0]),
    softcap=0,
    q_descale=None,
    k_descale=torch.ones(1, 1, device=DEVICE),
    v_descale=torch.ones(1, 1, device=DEVICE),
    seq_threshold_3D=ROWS,
    num_par_softmax_segments=SEGMENTS,
    softmax_segm_output=torch.empty(ROWS, 1, SEGMENTS, HEAD_SIZE, device=DEVICE),
    softmax_segm_max=torch.empty(ROWS, 1, SEGMENTS, device=DEVICE),
    softmax_segm_expsum=torch.empty(ROWS, 1, SEGMENTS, device=DEVICE),
)
weights = torch.exp(q[0] @ cache[0, :0, 0].T)
compare((weights @ cache[0, :0, 0])[0, 0], out[0, 0, 0])  # a sum of nothing is 0
