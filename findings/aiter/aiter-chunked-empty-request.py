"""chunked_prefill_paged_decode: a request without a query writes a row of the output, the one after the last row.

A decode of one token, and a second request without a query, as the padding for a graph has it. Query and output
are the first rows of buffers of two rows. The second row of the output holds -1 before the call.
"""

import torch
from calls import chunked_prefill_paged_decode
from kernels import DEVICE, compare, ints, load

HEAD_SIZE, X = 32, 8
q = torch.ones(2, 1, HEAD_SIZE, dtype=torch.float16, device=DEVICE)
k_cache = torch.ones(1, 1, HEAD_SIZE // X, 16, X, dtype=q.dtype, device=DEVICE)
v_cache = torch.ones(1, 1, HEAD_SIZE, 16, dtype=q.dtype, device=DEVICE)
module = load("aiter.ops.triton.attention.chunked_pa_prefill")
out = torch.full_like(q, -1.0)
chunked_prefill_paged_decode(
    module,
    *(q[:1], q[:1], q[:1], k_cache, v_cache, out[:1]),
    keys=1,
    block_table=ints([0], [0]),
    query_start_loc=ints(0, 1, 1),
    seq_lens=ints(1, 0),
)
compare([1.0, -1.0], out[:, 0, 0])
