"""fp8_mqa_logits_torch: the product of a query and an index key is rounded to bfloat16.

One query of one head, whose weight is 1, and two keys. The products are 16 * 16 + 1 * 1 and 16 * 16.
"""

import torch
from kernels import DEVICE, compare, ints, load

module = load("vllm.v1.attention.ops.rocm_aiter_mla_sparse")
keys = torch.zeros(2, 32, device=DEVICE)
keys[0, :2] = torch.tensor([16.0, 1.0])
keys[1, 0] = 16.0
scales, weights = torch.ones(2, 1, device=DEVICE), torch.ones(1, 1, device=DEVICE)
keys = keys.to(module.FP8_DTYPE)
logits = module.fp8_mqa_logits_torch(keys[None, :1], (keys, scales), weights, ints(0), ints(2))
compare([[257.0, 256.0]], logits)
