"""TRITON_ATTN, a scale for each token and head: an infinite scale before the window makes the output NaN.

One query, a window of 1 token, 17 keys. The block before the window belongs to another request by now, whose K and V are
infinite. All visible values are 1.
"""

import torch
from calls import unified_attention
from kernels import DEVICE, compare, ints, load

KEYS, WINDOW, HEAD_SIZE = 17, 1, 32
module = load("vllm.v1.attention.ops.triton_unified_attention")
q = torch.ones(1, 1, HEAD_SIZE, dtype=torch.float16, device=DEVICE)
cache = torch.ones(2, 16, 1, HEAD_SIZE, dtype=torch.int8, device=DEVICE)
scales = torch.ones(2, 16, 1, device=DEVICE)
scales[0] = torch.inf
out = unified_attention(
    module,
    *(q, cache, cache),
    keys=KEYS,
    window_size=(WINDOW - 1, 0),
    block_table=ints([0, 1, 0, 0]),
    kv_quant_mode=module.KVQuantMode.INT8_PER_TOKEN_HEAD,
    k_scale_cache=scales,
    v_scale_cache=scales,
)
compare(1.0, out[0, 0, 0])
