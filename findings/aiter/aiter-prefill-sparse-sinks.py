"""pa_prefill_sparse: a step with sinks raises on gfx942, and on every GPU but gfx950 and gfx1250.

One query of 16 heads whose logits are all 0, and one key, which is 1 in all dims, with sinks of 0. The key has half the weight.
"""

import torch
from kernels import DEVICE, compare, ints, load

HEADS, WIDTH = 16, 512
q = torch.zeros(1, HEADS, WIDTH, dtype=torch.float16, device=DEVICE)
pool, sinks = torch.ones(1, WIDTH, dtype=q.dtype, device=DEVICE), torch.zeros(HEADS, device=DEVICE)
host = load("aiter.ops.triton.attention.pa_prefill_sparse")
host._sparse_attn_prefill_kernel.configs = host._sparse_attn_prefill_kernel.configs[:1]  # nothing to compare them by
try:
    out = host.pa_prefill_sparse(q, pool, ints(0), ints(0, 1), None, None, None, sinks, 1.0)[0, 0, 0]
except RuntimeError as error:
    print(error)
    out = torch.tensor(torch.nan)
compare(0.5, out)
