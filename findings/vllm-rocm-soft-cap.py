"""ROCM_ATTN: RocmAttentionImpl keeps the soft cap of logits and does not use it, and says nothing.

One query and two keys, a soft cap of 1, and logits of 4 and 0. The values are 1 and 0, so the output
is the weight of the first.
"""

from types import SimpleNamespace

import torch
from excerpt import excerpt
from kernels import DEVICE, PLATFORM, compare, ints, load, no

HEAD_SIZE, X, CAP = 32, 8, 1.0
kernels = load("vllm.v1.attention.ops.chunked_prefill_paged_decode")
q = torch.zeros(1, 1, HEAD_SIZE, dtype=torch.float16, device=DEVICE)
q[..., 0] = 4.0
k_cache = torch.zeros(1, 1, HEAD_SIZE // X, 16, X, dtype=q.dtype, device=DEVICE)
v_cache = torch.zeros(1, 1, HEAD_SIZE, 16, dtype=q.dtype, device=DEVICE)
k_cache[0, 0, 0, 0, 0] = 1.0  # of the first key, element 0
v_cache[..., 0] = 1.0
RocmAttentionImpl = excerpt(
    "vllm",
    "v1/attention/backends/rocm_attn.py",
    "RocmAttentionImpl",
    torch=torch,
    current_platform=PLATFORM,
    AttentionImpl=object,
    AttentionType=SimpleNamespace(DECODER="decoder", ENCODER="encoder", ENCODER_ONLY="encoder_only"),
    PagedAttention=SimpleNamespace(split_kv_cache=lambda *arguments: (k_cache, v_cache)),
    is_quantized_kv_cache=no,
    chunked_prefill_paged_decode=kernels.chunked_prefill_paged_decode,
)
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
backend.forward(SimpleNamespace(_k_scale=one, _v_scale=one), q, q, q, one.view(1, 1), metadata, out)
logits = torch.tensor([4.0, 0.0], device=DEVICE)
compare((CAP * torch.tanh(logits / CAP)).softmax(dim=0)[0], out[0, 0, 0])
