"""ROCM_ATTN: RocmAttentionImpl keeps the soft cap of logits and does not use it, and says nothing.

One query and two keys, a soft cap of 1, and logits of 4 and 0. The values are 1 and 0, so the output
is the weight of the first.
"""

from types import SimpleNamespace

import torch
from kernels import DEVICE, compare, ints, load

HEAD_SIZE, X, CAP = 32, 8, 1.0
q = torch.zeros(1, 1, HEAD_SIZE, dtype=torch.float16, device=DEVICE)
q[..., 0] = 4.0
kv_cache = torch.zeros(
    1, 2, 16, HEAD_SIZE, dtype=q.dtype, device=DEVICE
)  # of one block: K in parts of X dims, and V transposed
kv_cache[0, 0].view(HEAD_SIZE // X, 16, X)[0, 0, 0] = 1.0  # of the first key, element 0
kv_cache[0, 1].view(HEAD_SIZE, 16)[:, 0] = 1.0
RocmAttentionImpl = load("vllm.v1.attention.backends.rocm_attn").RocmAttentionImpl
backend = RocmAttentionImpl(1, HEAD_SIZE, 1.0, 1, None, None, "auto", logits_soft_cap=CAP)
metadata = SimpleNamespace(
    num_actual_tokens=1,
    max_query_len=1,
    query_start_loc=ints(0, 1),
    max_seq_len=2,
    seq_lens=ints(2),
    block_table=ints([0]),
    causal=True,
)
one = torch.ones((), device=DEVICE)
out = torch.full_like(q, torch.nan)
backend.forward(SimpleNamespace(_k_scale=one, _v_scale=one), q, q, q, kv_cache, metadata, out)
logits = torch.tensor([4.0, 0.0], device=DEVICE)
compare((CAP * torch.tanh(logits / CAP)).softmax(dim=0)[0], out[0, 0, 0])
