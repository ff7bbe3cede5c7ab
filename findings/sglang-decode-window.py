"""The triton backend: a decode of a layer with a window of 2 tokens sees 1 key.

The model's window goes through the model's and the backend's own functions to the kernel of decodes. Three keys, whose values
are 1, 2 and 4. All logits are 0, so the output is the mean of the last two values.
"""

from types import SimpleNamespace

import torch
from calls import decode_attention_fwd
from kernels import DEVICE, compare, ints, load

KEYS, WINDOW, HEAD_SIZE = 3, 2, 32
window_size = load("sglang.srt.models.gemma2").get_attention_sliding_window_size
window_keys = load("sglang.srt.layers.attention.triton_backend").update_sliding_window_buffer


def pack_read_stream(plan, *, seq_lens, kv_start_idx, out, **rest):
    out.copy_(torch.arange(int(seq_lens[0]), device=DEVICE) + kv_start_idx[0])  # key i is in slot i


translator = SimpleNamespace(pack_read_stream=pack_read_stream, window_kv_kind=None)
radius = window_size(SimpleNamespace(sliding_window=WINDOW))
indptr, indices, *_ = window_keys(ints(0, 0), translator, None, None, radius, ints(KEYS), 1, DEVICE)

q = torch.zeros(1, 1, HEAD_SIZE, dtype=torch.float16, device=DEVICE)
k = torch.zeros(KEYS, 1, HEAD_SIZE, dtype=q.dtype, device=DEVICE)
v = k + torch.tensor([1.0, 2.0, 4.0], dtype=q.dtype, device=DEVICE)[:, None, None]
module = load("sglang.kernels.ops.attention.decode_attention")
compare(3.0, decode_attention_fwd(module, q, k, v, indptr, indices)[0, 0, 0])
