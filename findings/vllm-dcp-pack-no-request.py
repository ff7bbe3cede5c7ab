"""Decode context parallelism, all-to-all: for a step without local requests, the pack kernel reads in front of seq_lens.

One padded row and no request, as vllm/v1/attention/ops/dcp.py:82-86 says of warmup. The call runs in a process of its own, and
what is compared is how that process ends: an empty tensor has no memory, and a read in front of it ends a process.
"""

import multiprocessing
import sys

import torch
from kernels import DEVICE, compare, ints, load

pack_send = load("vllm.v1.attention.ops.dcp")._dcp_a2a_pack_send


def pack():
    out, lse = torch.ones(1, 2, 16, device=DEVICE), torch.zeros(1, 2, device=DEVICE)
    sent = torch.empty(2, 1, 1, 17, device=DEVICE)  # of each rank: outputs of one head, and its LSE
    pack_send(out, lse, sent, 2, 1, 16, 1, seq_lens=ints(), query_start_loc=ints(0))
    sys.exit(0 if torch.isneginf(sent[..., 16]).all() else 1)


process = multiprocessing.get_context("fork").Process(target=pack)
process.start()
process.join()
compare(torch.zeros(1), torch.tensor([float(process.exitcode or 0)]))
