"""The triton backend: a decode of a layer with a window of 2 tokens sees 1 key.

The model's window goes through the model's own function and TritonAttnBackend, as for a CUDA graph, to the kernel of decodes.
Three keys, whose values are 1, 2 and 4. All logits are 0, so the output is the mean of the last two values.
"""

from types import SimpleNamespace

import torch
from calls import decode_attention_fwd
from kernels import DEVICE, compare, ints, load

KEYS, WINDOW, HEAD_SIZE = 3, 2, 32
window_size = load("sglang.srt.models.gemma2").get_attention_sliding_window_size
backend = load("sglang.srt.layers.attention.triton_backend").TritonAttnBackend


def pack_read_stream(plan, *, seq_lens, kv_start_idx, out, **rest):
    keys = int(seq_lens[0])
    out[:keys] = torch.arange(keys, device=DEVICE) + kv_start_idx[0]  # key i is in slot i


indices = torch.zeros(KEYS, dtype=torch.int64, device=DEVICE)
state = SimpleNamespace(
    dcp_size=1,
    sliding_window_size=window_size(SimpleNamespace(sliding_window=WINDOW)),
    kv_index_translator=SimpleNamespace(pack_read_stream=pack_read_stream, window_kv_kind=None),
    token_to_kv_pool=None,
    window_kv_indptr=ints(0, 0),
    cuda_graph_window_kv_indices=indices,
    cuda_graph_kv_indices=None,
    _fill_kv_indptr_and_indices=lambda *arguments: None,
)
indptr = backend._update_decode_kv_buffers(state, None, 1, ints(KEYS), ints(0))[1]

q = torch.zeros(1, 1, HEAD_SIZE, dtype=torch.float16, device=DEVICE)
k = torch.zeros(KEYS, 1, HEAD_SIZE, dtype=q.dtype, device=DEVICE)
v = k + torch.tensor([1.0, 2.0, 4.0], dtype=q.dtype, device=DEVICE)[:, None, None]
module = load("sglang.kernels.ops.attention.decode_attention")
compare(3.0, decode_attention_fwd(module, q, k, v, indptr, indices)[0, 0, 0])
