"""TRITON_ATTN_DIFFKV, keys split over programs (3D): a row that no request owns is written.

A decode of one token in a batch that is padded to two rows, as a graph has it. The second row holds -1 before the call. K is
wider than V, as in MiMo-V2.
"""

import torch
from kernels import DEVICE, compare, ints, load

HEAD_SIZE, HEAD_SIZE_V, SEGMENTS, ROWS = 48, 32, 16, 128
torch.use_deterministic_algorithms(True, warn_only=True)  # memory that is allocated starts as NaN
q = torch.ones(2, 1, HEAD_SIZE, dtype=torch.float16, device=DEVICE)
cache = torch.ones(1, 16, 1, HEAD_SIZE + HEAD_SIZE_V, dtype=q.dtype, device=DEVICE)
k, v = cache.split([HEAD_SIZE, HEAD_SIZE_V], dim=3)
out = torch.full_like(q[..., :HEAD_SIZE_V], -1.0)
load("vllm.v1.attention.ops.triton_unified_attention_diffkv").unified_attention_diffkv(
    q=q,
    k=k,
    v=v,
    out=out,
    cu_seqlens_q=ints(0, 1),
    seqused_k=ints(1),
    softmax_scale=1.0,
    causal=True,
    window_size=(-1, -1),
    block_table=ints([0, 0, 0, 0]),
    softcap=0,
    max_seqlen_q=1,
    seq_threshold_3D=ROWS,
    num_par_softmax_segments=SEGMENTS,
    softmax_segm_output=torch.empty(ROWS, 1, SEGMENTS, HEAD_SIZE_V, device=DEVICE),
    softmax_segm_max=torch.empty(ROWS, 1, SEGMENTS, device=DEVICE),
    softmax_segm_expsum=torch.empty(ROWS, 1, SEGMENTS, device=DEVICE),
)
compare([1.0, -1.0], out[:, 0, 0])
