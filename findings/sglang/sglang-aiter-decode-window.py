"""The aiter backend: a decode of a layer with a window of 2 tokens sees 1 key.

The model's window goes through the model's own function and AiterAttnBackend.forward_decode to AITER's unified_attention, whose
window is a number of keys before the query's own. Three keys, whose values are 1, 2 and 4. All logits are 0, so the output is
the mean of the last two values.
"""

from types import SimpleNamespace

import torch
from kernels import DEVICE, compare, ints, load

KEYS, WINDOW, HEAD_SIZE, PAGE = 3, 2, 32, 16
v = torch.zeros(1, PAGE, 1, HEAD_SIZE, device=DEVICE)
v[0, :KEYS] = torch.tensor([1.0, 2.0, 4.0], device=DEVICE)[:, None, None]
radius = load("sglang.srt.models.gemma2").get_attention_sliding_window_size(SimpleNamespace(sliding_window=WINDOW))
backend = load("sglang.srt.layers.attention.aiter_backend")


def unified_attention(*, v, out, window_size, seqused_k, **rest):
    """AITER's, of one request whose logits are equal: a query sees window_size[0] keys before its own one."""
    end = int(seqused_k[0])
    out[0] = v.flatten(0, 1)[end - 1 - window_size[0] : end].mean(0)


vars(backend).update(unified_attention=unified_attention)
heads = dict.fromkeys(("tp_q_head_num", "tp_k_head_num", "tp_v_head_num"), 1)
layer = SimpleNamespace(
    **heads,
    **dict.fromkeys(("qk_head_dim", "v_head_dim"), HEAD_SIZE),
    sliding_window_size=radius,
    layer_id=0,
    scaling=1.0,
    logit_cap=0.0,
)
metadata = SimpleNamespace(kv_indices=ints([0]), swa_page_table=None, max_q_len=1, qo_indptr=ints(0, 1))
attention = SimpleNamespace(
    use_triton_unified_attention=True,
    kv_cache_is_vectorized_5d=False,
    kv_cache_dtype=v.dtype,
    input_dtype=v.dtype,
    use_mla=False,
    page_size=PAGE,
    forward_metadata=metadata,
    token_to_kv_pool=SimpleNamespace(get_kv_buffer=lambda layer: (v, v)),
)
q = torch.zeros(1, HEAD_SIZE, device=DEVICE)
batch = SimpleNamespace(batch_size=1, seq_lens=ints(KEYS))
out = backend.AiterAttnBackend.forward_decode(attention, q, q, q, layer, batch, save_kv_cache=False)
compare(3.0, out[0, 0])
