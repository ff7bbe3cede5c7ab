"""rocm_fp8_paged_mqa_logits without AITER: index keys are written in tiles, and read one slot after the other.

A block of 16 slots, as vLLM has them by default. Key i is 1 at dim i and else 0, and the query of each head is 2^i there, up to
256, so the logit of key i is 2^i. Without AITER is gfx950 while VLLM_ROCM_USE_AITER is off, as it is by default.
"""

import torch
from kernels import DEVICE, compare, ints, load

HEADS, SIZE, SLOTS = 16, 32, 16
module = load("vllm.v1.attention.ops.rocm_aiter_mla_sparse")
k = torch.eye(SLOTS, SIZE, dtype=torch.bfloat16, device=DEVICE)
cache = torch.zeros(1, SLOTS, SIZE + 4, dtype=torch.uint8, device=DEVICE)
module.indexer_k_quant_and_cache_triton(k, cache, torch.arange(SLOTS, device=DEVICE), 128, "ue8m0")
q = torch.zeros(1, 1, HEADS, SIZE, device=DEVICE)
q[..., :9] = 2.0 ** torch.arange(9, device=DEVICE)
weights = torch.full((1, HEADS), 1 / HEADS, device=DEVICE)
logits = module.rocm_fp8_paged_mqa_logits(
    q.to(module.FP8_DTYPE), cache[:, :, None], weights, ints([SLOTS]), ints([0]), None, SLOTS
)
compare([1.0, 2.0, 4.0, 8.0, 16.0], logits[0, :5])
