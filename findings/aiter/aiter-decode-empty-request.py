"""unified_attention: in a step of decodes, a request without a query shifts the rows after it, and one row too many is
written.

Two requests of one key each, whose values are 1 and 2. The first has no query, the second has one. The batch is padded to two
rows, as a graph has it. The second row of the output holds -1 before the call.
"""

import torch
from calls import unified_attention
from kernels import DEVICE, compare, ints, load

HEAD_SIZE = 32
q = torch.ones(2, 1, HEAD_SIZE, dtype=torch.float16, device=DEVICE)
cache = torch.ones(2, 16, 1, HEAD_SIZE, dtype=q.dtype, device=DEVICE)
cache[1] = 2.0
out = torch.full_like(q, -1.0)
module = load("aiter.ops.triton.attention.unified_attention")
unified_attention(
    module,
    q,
    cache,
    cache,
    out,
    keys=1,
    cu_seqlens_q=ints(0, 0, 1),
    seqused_k=ints(1, 1),
    block_table=ints([0], [1]),
)
compare(torch.tensor([2.0, -1.0]), out[:, 0, 0].cpu())
