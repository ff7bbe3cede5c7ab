"""Decode context parallelism, all-to-all: for a step without local requests, the pack kernel reads in front of seq_lens.

One padded row and no request, as vllm/v1/attention/ops/dcp.py:82-86 says of warmup. What is compared is how the call ends: an
empty tensor has no memory, in front of which could be read.
"""

import torch
from ending import ending
from kernels import DEVICE, compare, ints, load

pack_send = load("vllm.v1.attention.ops.dcp")._dcp_a2a_pack_send


def pack():
    out, lse = torch.ones(1, 2, 16, device=DEVICE), torch.zeros(1, 2, device=DEVICE)
    sent = torch.empty(2, 1, 1, 17, device=DEVICE)  # of each rank: outputs of one head, and its LSE
    pack_send(out, lse, sent, 2, 1, 16, 1, seq_lens=ints(), query_start_loc=ints(0))
    return torch.isneginf(sent[..., 16]).all()


compare(torch.zeros(1), torch.tensor([ending(pack)]))
