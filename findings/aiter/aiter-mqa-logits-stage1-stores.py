"""deepgemm_fp8_paged_mqa_logits_stage1: up to 255 columns past a row of logits are written.

One query with 16 heads of 32 dims, and one key. All numbers are 1, so a head's logit is 32. max_model_len is 4: so many columns
of a row are -inf before the call, as an engine fills them. The columns after them are 7.
"""

import torch
from kernels import DEVICE, compare, ints, load

HEADS, SIZE, COLUMNS = 16, 32, 4
module = load("aiter.ops.triton.attention.pa_mqa_logits")
q = torch.ones(1, 1, HEADS, SIZE, device=DEVICE).to(module.dtypes.fp8)
cache = torch.empty(1, SIZE + 4, dtype=torch.uint8, device=DEVICE)
cache[:, :SIZE] = q[0, 0, :1].view(torch.uint8)
cache[:, SIZE:] = torch.ones(1, 1, device=DEVICE).view(torch.uint8)
logits = torch.full((HEADS, 1, 512), 7.0, device=DEVICE)
logits[:, :, :COLUMNS] = -torch.inf
weights = torch.ones(1, HEADS, device=DEVICE)
module.deepgemm_fp8_paged_mqa_logits_stage1(
    q, cache.view(1, 1, 1, SIZE + 4), weights, logits, ints(1), ints([0]), COLUMNS, ChunkQ=HEADS
)
compare([32.0, *[-torch.inf] * 3, 7.0, 7.0], logits[0, 0, : COLUMNS + 2])
