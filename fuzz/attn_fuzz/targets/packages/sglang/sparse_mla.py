"""SGLang's Triton attention over chosen latent rows, of DeepSeek Sparse Attention (kernels/ops/attention/dsa).

triton_sparse_mla.py and triton_sparse_mla_decode.py on ROCm attend in one part, or in parts of 64 entries or more that are
rounded to bfloat16 (triton_sparse_mla.py:1107). The number of parts follows from a GPU's compute units. A tile of bfloat16 has
32 entries on gfx942 (:152-174). triton_sparse_mla_prefill.py on CUDA attends in one part, up to the last entry that is not -1,
and may gather the entries of 2 or 4 rows together (`union`), where rows have a power of two of entries.

Outputs are bfloat16, and rows of the cache are dense. Entries are slots; -1 may stand anywhere.
"""

import dataclasses
import functools
from types import ModuleType

import torch
from attn_fuzz.foreign.loading import Stubs
from attn_fuzz.targets.packages import SGLANG
from attn_fuzz.targets.packages.declaring import Sources
from attn_fuzz.targets.packages.latent_rows import SPARSE_TOKENS, selection_target
from attn_fuzz.targets.packages.sglang import package as sglang_package
from attn_fuzz.targets.support import LatentSizes
from attn_fuzz.verdict.rounding import Rounding

FOLDER = "kernels/ops/attention/dsa/"
SPLITS, TILE = (1, 2, 4), 32
TILES_OF_PREFILL = (TILE, 8, 2)
"""Entries, warps and stages: the prefill steps down to fewer entries where 64 do not fit (triton_sparse_mla_prefill.py:370)."""
ENGINE = dataclasses.replace(
    SPARSE_TOKENS, padding=(0,), num_layers=(1,), empty_requests=False, unowned_rows=(0,), dense_out=(True,)
)


def _stubs() -> Stubs:
    return sglang_package.stubs() | {
        "sglang.kernels.ops.attention.metadata": {"q8kv8_topk_length_from_indices": None},
        "sglang.kernels.ops.quantization.fp8_kernel": {"is_fp8_fnuz": lambda: True},
    }


def _answer(modules: list[ModuleType]) -> None:
    """Answer what the modules ask of a GPU. Triton's interpreter cannot add a constexpr to a tensor, but a number."""
    from triton import knobs

    known = {
        "_sparse_mla_block_k": lambda kv: TILE,
        "_cu_count": lambda device=None: sglang_package.COMPUTE_UNITS,
        "_config": lambda device: TILES_OF_PREFILL,
        **({"_G": 128} if knobs.runtime.interpret else {}),
    }
    for module in modules:
        vars(module).update({name: value for name, value in known.items() if name in vars(module)})


SPARSE, PREFILL = (
    Sources(SGLANG, names, _stubs, (FOLDER,), change=_answer)
    for names in (("triton_sparse_mla", "triton_sparse_mla_decode"), ("triton_sparse_mla_prefill", "triton_sparse_mla"))
)


def _padded(slots: torch.Tensor) -> torch.Tensor:
    """Slots padded to a power of two of entries, as an indexer gives them."""
    width = 1 << max(slots.shape[1] - 1, 15).bit_length()
    return torch.nn.functional.pad(slots, (0, width - slots.shape[1]), value=-1)


def _attend(q, slots, kv_cache, layer, out, rng) -> None:
    latent, rotated = q.split([layer.v_head_size, layer.head_size - layer.v_head_size], dim=2)
    cache, indices, splits = kv_cache.flatten(0, 1).unsqueeze(1), _padded(slots).unsqueeze(1), rng.choice(SPLITS)
    call = (latent, rotated, cache, indices, layer.scale, layer.v_head_size)
    fused, decode = SPARSE.load()
    if rng.choice((False, True)):
        found = decode.triton_sparse_mla_decode_splitk(*call, kv_splits=splits, workspace=[])
    else:
        found = fused._triton_sparse_mla_fwd_splitk(*call, splits)
    out[:] = found[0]


def _prefill(q, slots, kv_cache, layer, out, rng) -> None:
    out[:] = PREFILL.load()[0].sparse_mla_prefill(
        q,
        kv_cache.flatten(0, 1),
        _padded(slots),
        layer.scale,
        layer.v_head_size,
        union=rng.choice((0, 2, 4)),
        union_config=TILES_OF_PREFILL,
        int64_indexing=rng.choice((False, True)),
    )


_target = functools.partial(
    selection_target,
    support={
        "dtypes": ("bfloat16",),
        "latent": LatentSizes(widths=((512, 64), (128, 32)), group_sizes=(16, 8, 64), block_sizes=(1, 64, 16)),
        "engine": ENGINE,
        "max_seq_len": 300,
    },
)
SGLANG_SPARSE_MLA = _target(
    _attend,
    name="sglang-sparse-mla",
    description="the fused and the split Triton sparse MLA of SGLang",
    rounding=Rounding(keys_per_tile=TILE, splits=max(SPLITS), merged_parts=2),
    **SPARSE.fields(),
)
SGLANG_SPARSE_MLA_PREFILL = _target(
    _prefill,
    name="sglang-sparse-mla-prefill",
    description="sparse_mla_prefill of SGLang, also over the union of adjacent rows",
    rounding=Rounding(keys_per_tile=TILE),
    **PREFILL.fields(),
)
