"""deepgemm_fp8_paged_mqa_logits_ragged_k: queries of a request see one another's keys.

Three queries of one request with four keys. Each has 16 heads of 32 dims. All numbers are 1, and the scale of key i is 2^i, so
its logit is 512 * 2^i. What is compared is the logit over 512: query 0 sees 2 keys, query 1 sees 3, and query 2 all 4.
"""

import torch
from kernels import DEVICE, compare, ints, load

HEADS, SIZE, QUERIES, KEYS = 16, 32, 3, 4
module = load("aiter.ops.triton.attention.pa_mqa_logits")
q = torch.ones(1, QUERIES, HEADS, SIZE, device=DEVICE).to(module.dtypes.fp8)
scales = 2.0 ** torch.arange(KEYS, device=DEVICE)
cache = torch.empty(KEYS, SIZE + 4, dtype=torch.uint8, device=DEVICE)
cache[:, :SIZE] = q[0, 0, 0].view(torch.uint8)
cache[:, SIZE:] = scales[:, None].view(torch.uint8)
logits = torch.full((QUERIES, 64), -torch.inf, device=DEVICE)
weights = torch.ones(QUERIES, HEADS, device=DEVICE)
module.deepgemm_fp8_paged_mqa_logits_ragged_k(q, cache, weights, logits, ints(0, KEYS), ints(*range(KEYS)), 64)
expected = scales.cpu().expand(QUERIES, -1).clone()
expected[0, 2:] = expected[1, 3:] = -torch.inf
compare(expected, logits[:, :KEYS] / (HEADS * SIZE))
