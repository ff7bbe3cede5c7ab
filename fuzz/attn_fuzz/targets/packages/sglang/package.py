"""Shared by the targets of SGLang's Triton kernels: their modules, calls that they share, and its engine.

The lines that are cited are those of the wheel of SGLang 0.5.23; those without a file are of
srt/layers/attention/triton_backend.py. `ATTN_PARITY_SGLANG=FOLDER` takes the sources of another release.
"""

import functools
import logging
from types import ModuleType, SimpleNamespace

import torch
from attn_contract import AttentionType, Batch, Layer, Layout
from attn_fuzz import foreign
from attn_fuzz.foreign.loading import Stubs
from attn_fuzz.targets.engine import GIVES_KEYS, Engine
from attn_fuzz.targets.modes import far
from attn_fuzz.targets.packages import SGLANG
from attn_fuzz.targets.packages.declaring import Sources
from attn_fuzz.targets.packages.slots import slots_of_requests
from attn_fuzz.targets.support import Support

HEAD_SIZES = (32, 64, 80, 96, 128)
LAYOUT = Layout.KV_FIRST_NHD
"""Its pool is a K buffer and a V buffer, each [slots, HK, D] (srt/mem_cache/memory_pool.py)."""
FOLDERS_OF_FILES = ("kernels/ops/attention/", "srt/layers/attention/triton_ops/")
"""The folder of the kernels, and their folder before 0.5.16."""
COMPUTE_UNITS = 132
"""`get_device_core_count` of an H200."""
ENGINE = Engine(
    windows=("by causality",),
    one_token_windows=False,
    scale_signs=(1,),
    more_queries_than_keys=False,
    empty_requests=False,
    empty_batches=False,
    planes=(True,),
    padding=(0,),
    num_layers=(1,),
    other_views=False,
    **GIVES_KEYS,
    flat_out=(True,),
    dense_out=(True,),
    unowned_rows=(0,),
    kv_rows_past=(0,),
    cited={"one_token_windows": "srt/layers/attention/triton_backend.py:905, :1090"},
)
"""The calls of TritonAttnBackend: every request has a query and a key, and gives k and v in every step.
A window of one token has a `sliding_window_size` of 0, and no slots.
"""

logging.getLogger("sglang").setLevel(logging.WARNING)


def stubs() -> Stubs:
    flag = SimpleNamespace(get=lambda: False)
    no = ("is_cuda", "is_hip", "is_gfx95_supported", "is_gfx1250_supported")
    return {
        "sglang.srt.environ": {"envs": SimpleNamespace(SGLANG_TRITON_FP8_PREFILL_ATTN=flag)},
        "sglang.srt.utils": {"get_device_core_count": lambda device: COMPUTE_UNITS, **{name: lambda: False for name in no}},
    }


def ops(*names: str) -> Sources:
    """Modules of sglang/kernels/ops/attention. One that another imports comes with it."""
    return Sources(SGLANG, names, stubs, FOLDERS_OF_FILES, FOLDERS_OF_FILES)


def window_slots(batch: Batch, end: torch.Tensor, size: int, block_size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """`slots_of_requests` of the last `size` of each request's keys [0, end) (2869-2879); of all if `size` is negative."""
    lengths = end if size < 0 else end.clamp(max=size)
    return slots_of_requests(batch, end, block_size, end - lengths)


def is_decode(query_lens: list[int]) -> bool:
    """True if a step is a decode: it has one query for each request. Any other step is an extend."""
    return all(length == 1 for length in query_lens)


def extend_arguments(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    out: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    batch: Batch,
    indptr: torch.Tensor,
    indices: torch.Tensor,
) -> tuple[object, ...]:
    """The first arguments of extend_attention_fwd and of verify_splitkv_fwd (1888-1909): up to the mask, which is causal."""
    rows = int(batch.query_start_loc[-1])
    own = (q[:rows], k[:rows].contiguous(), v[:rows].contiguous(), out[:rows])
    return *own, k_cache.flatten(0, 1), v_cache.flatten(0, 1), batch.query_start_loc.long(), indptr, indices, None, True, None


def decode(
    module: ModuleType,
    q: torch.Tensor,
    caches: tuple[torch.Tensor, torch.Tensor],
    layer: Layer,
    batch: Batch,
    out: torch.Tensor,
    *,
    window: int,
    splits: torch.Tensor,
    max_splits: int,
    uneven: torch.Tensor,
) -> None:
    """decode_attention_fwd (2479) for a query of each request, over its last `window` keys, or all of them if that is negative.

    Args:
        splits: parts of each request's keys, [R] int32.
        uneven: True if requests have unlike numbers of them, as the kernel takes it.
    """
    k_cache, v_cache = caches
    requests, page = batch.num_requests, k_cache.shape[1]
    indptr, indices = window_slots(batch, batch.seq_lens, window, page)
    scratch = (requests, layer.num_heads, max_splits)
    foreign.call(
        module.decode_attention_fwd,
        q[:requests],
        k_cache.flatten(0, 1),
        v_cache.flatten(0, 1),
        out[:requests],
        indptr,
        indices,
        far.parts((*scratch, layer.head_size), q.device),
        far.parts(scratch, q.device, width=layer.head_size),
        splits,
        max_splits,
        layer.scale,
        1.0,
        1.0,
        logit_cap=layer.logits_soft_cap or 0.0,
        sinks=layer.sinks,
        hints={"page_size": page, "uneven_batch": uneven},
    )


support = functools.partial(
    Support,
    attn_types=(AttentionType.DECODER,),
    dtypes=("float16", "bfloat16"),
    layouts=(LAYOUT,),
    head_sizes=HEAD_SIZES,
    engine=ENGINE,
    tile_sizes=(32, 64),
    max_tokens=96,
    max_seq_len=320,
)
"""Sizes and dtypes of the pool that are drawn, with more fields."""
