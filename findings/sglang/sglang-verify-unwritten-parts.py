"""verify_splitkv_fwd: NaN that one request leaves in the memory of parts makes a later request's output NaN.

First a draft after a prefix of 97 tokens, which fills all 4 parts of 32 keys. V of its prefix holds NaN, so its own output is
NaN, too. Then a draft after a prefix of one token, in memory of its own, whose values are 1.
"""

import torch
from kernels import DEVICE, compare, ints, load

HEAD_SIZE = 32
verify_splitkv_fwd = load("sglang.kernels.ops.attention.verify_splitkv").verify_splitkv_fwd


def verify(v_prefix):
    """The output of one draft whose logits are all 0, and whose value is 1."""
    q = torch.zeros(1, 1, HEAD_SIZE, dtype=torch.float32, device=DEVICE)
    v, out = torch.ones_like(q), torch.full_like(q, -1.0)
    prefix = len(v_prefix)
    ran = verify_splitkv_fwd(
        q,
        torch.zeros_like(q),
        v,
        out,
        torch.zeros_like(v_prefix),
        v_prefix,
        ints(0, 1),
        ints(0, prefix),
        torch.arange(prefix, device=DEVICE),
        None,
        True,
        None,
        1,
        1.0,
        1.0,
        sm_scale=1.0,
    )
    assert ran, "verify_splitkv_fwd leaves the step to extend_attention_fwd"
    return out[0, 0, 0]


values = torch.ones(1, 1, HEAD_SIZE, dtype=torch.float32, device=DEVICE)
verify(torch.full((97, 1, HEAD_SIZE), torch.nan, dtype=values.dtype, device=DEVICE))
compare(1.0, verify(values))
