"""sparse_attn_v4_paged_decode and _prefill: rows 2^22 to 3 * 2^22 - 1 are read 2^32 elements before their place.

One query, whose logits are all 0, with one key: the last of the 2^23 + 1 rows of 512 dims that a pool has. All dims of that row
are 2, and those of the first row 1. No other row is touched, so the system gives the pool no memory for it.
"""

import torch
from kernels import DEVICE, compare, ints, load

ROWS, HEADS, WIDTH = (1 << 23) + 1, 16, 512
torch.Tensor.is_cuda = True  # which they ask for
q = torch.zeros(1, HEADS, WIDTH, dtype=torch.float16, device=DEVICE)
pool = torch.empty(ROWS, WIDTH, dtype=q.dtype, device=DEVICE)
pool[0], pool[-1] = 1, 2
sinks = torch.full((HEADS,), -1e30, device=DEVICE)
key, one, none = ints(ROWS - 1), ints(0, 1), ints(0, 0)
decode = load("sglang.kernels.ops.attention.dsv4.unified_kv_kernels.paged_decode").sparse_attn_v4_paged_decode
prefill = load("sglang.kernels.ops.attention.dsv4.unified_kv_kernels.paged_prefill").sparse_attn_v4_paged_prefill
out = [decode(q, pool, key, one, sinks, 1.0, kv_splits=splits) for splits in (1, 2)]
out.append(prefill(q, pool, key, one, pool[:1], key[:0], none, sinks, 1.0))
compare([2.0, 2.0, 2.0], torch.stack(out)[:, 0, 0, 0])
