"""ROCM_ATTN: with blocks of 80 slots, the decode loads an entry past a request's last block from the block table.

One request of 65 keys, whose block is the only entry of the table. The kernel takes tiles of 32 keys, and the third one ends
after the block. The entry lies at the end of a page of memory after which nothing is mapped. What is compared is how the call
ends.
"""

import ctypes
import mmap
from typing import Any

import torch
from calls import chunked_prefill_paged_decode
from ending import ending
from kernels import DEVICE, compare, ints, load

HEAD_SIZE, X, BLOCK_SIZE, KEYS = 32, 8, 80, 65
module = load("vllm.v1.attention.ops.chunked_prefill_paged_decode")
pages = mmap.mmap(-1, 2 * mmap.PAGESIZE)
table = torch.frombuffer(pages, dtype=torch.int32, count=1, offset=mmap.PAGESIZE - 4).view(1, 1)
end = ctypes.addressof(ctypes.c_char.from_buffer(pages)) + mmap.PAGESIZE
if DEVICE == "cuda":
    runtime: Any = torch.cuda.cudart()
    runtime.cudaHostRegister(end - mmap.PAGESIZE, mmap.PAGESIZE, 0)  # a GPU reads this page, and none after it


def decode():
    q = torch.ones(1, 1, HEAD_SIZE, dtype=torch.float16, device=DEVICE)
    k_cache = torch.ones(1, 1, HEAD_SIZE // X, BLOCK_SIZE, X, dtype=q.dtype, device=DEVICE)
    v_cache = torch.ones(1, 1, HEAD_SIZE, BLOCK_SIZE, dtype=q.dtype, device=DEVICE)
    ctypes.CDLL(None).mprotect(ctypes.c_void_p(end), mmap.PAGESIZE, 0)
    arguments = {"keys": KEYS, "block_table": table, "seq_lens": ints(KEYS), "max_seq_len": KEYS}
    out = chunked_prefill_paged_decode(module, q, q, q, k_cache, v_cache, **arguments)
    return torch.equal(out, torch.ones_like(out))


compare(torch.zeros(1), torch.tensor([ending(decode)]))
