"""fp8_paged_mqa_logits_torch: with two queries of a request, index keys are read at wrong places.

A flat block of two slots: first the 32 numbers of each key, and then the scale of each, which is where the same function reads
them for one query. All numbers are 1, and the scales are 1 and 2. Each of two queries has 16 heads, whose weights are 1: the
logits are 512 and 1024. The first query sees one key.
"""

import torch
from kernels import DEVICE, compare, ints, load

HEADS, SIZE, SLOTS = 16, 32, 2
module = load("vllm.v1.attention.ops.rocm_aiter_mla_sparse")
q = torch.ones(1, 2, HEADS, SIZE, device=DEVICE).to(module.FP8_DTYPE)
cache = torch.empty(1, SLOTS * (SIZE + 4), dtype=torch.uint8, device=DEVICE)
cache[:, : SLOTS * SIZE] = q[0].view(1, -1)[:, : SLOTS * SIZE].view(torch.uint8)
cache[:, SLOTS * SIZE :] = torch.tensor([[1.0, 2.0]], device=DEVICE).view(torch.uint8)
weights = torch.ones(2, HEADS, device=DEVICE)
logits = module.fp8_paged_mqa_logits_torch(q, cache.view(1, SLOTS, 1, SIZE + 4), weights, ints([1, 2]), ints([0]), SLOTS)
compare([[512.0, -torch.inf], [512.0, 1024.0]], logits)
