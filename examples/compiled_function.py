"""A function of a library, `libmy_attention.so` of attention.cu, by ctypes; one behind torch.ops is called in the same place.

nvcc -O2 -shared -Xcompiler -fPIC attention.cu -o libmy_attention.so                    (or hipcc -x hip -shared -fPIC)
g++ -O2 -shared -fPIC -x c++ attention.cu -o libmy_attention.so                                         (on a CPU)
"""

import ctypes
import os

import torch
from attn_contract import AttentionType, Layout
from attn_fuzz import foreign
from attn_fuzz.targets import Engine, Rounding, Support, Target

LIBRARY = os.environ.get("MY_ATTENTION", os.path.abspath("libmy_attention.so"))


def attention(q, k, v, kv_cache, layer, batch, *, out, lse):
    k_cache, v_cache = foreign.keys_and_values(kv_cache, layer)
    tensors = (out, q, k_cache, v_cache, batch.block_table, batch.seq_lens)
    sizes = (batch.num_requests, *q.shape[1:], *k_cache.shape[1:3], *k_cache.stride()[:3], batch.block_table.stride(0))
    stream = torch.cuda.current_stream().cuda_stream if q.is_cuda else 0
    pointers = [ctypes.c_void_p(tensor.data_ptr()) for tensor in tensors]
    numbers = [ctypes.c_long(size) for size in (*sizes, q.stride(0), out.stride(0))]
    ctypes.CDLL(LIBRARY).my_attention(*pointers, ctypes.c_float(layer.scale), *numbers, ctypes.c_void_p(stream))


TARGET = Target(
    name="my-compiled-function",
    description="decodes by a function of a library",
    attention=attention,
    support=lambda device: Support(
        attn_types=(AttentionType.DECODER,), dtypes=("float32",), layouts=(Layout.KV_FIRST_NHD,), max_seq_len=128,
        engine=Engine(query_lens=("one",), empty_requests=False, empty_batches=False, flat_out=(False,), fused_qkv=(False,),
                      unlike_strides=(False,)),
    ),
    unavailable=lambda device: None if os.path.exists(LIBRARY) else f"no {LIBRARY}: compile attention.cu",
    refuses=False, rounding=lambda device: Rounding(keys_per_tile=1),
)  # fmt: skip
