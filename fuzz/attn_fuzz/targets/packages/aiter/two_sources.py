"""AITER's sparse attention of DeepSeek-V4 to two sources, of no wheel, but of commit e4048607a5 of ROCm/aiter.

pa_prefill_sparse (attention/pa_prefill_sparse.py) attends to rows of a pool and to the step's own rows on gfx1250, in Gluon.
On gfx950 (mla_gluon) and elsewhere (sparse_attention_dsv4.py, in Triton) it has the pool alone. pa_decode_sparse has a second
cache on gfx950 (attention/pa_decode_sparse.py:70, "extra"), which SGLang takes (srt/layers/attention/hip_flash_mla.py:133). As
in `packages.vllm.two_caches`, what a row selects is dealt onto two sources. A whole row of the cache is K and V.

The host code of prefills before the Triton kernel raises for sinks (:202, `attn_sink or`), so its launch is here. Without sinks
there are those of -1e30 on gfx1250, whose kernel needs some. Gluon prefills get -1 where a selection has holes alone: findings
say what becomes of it. On gfx950 they take 64 or 128 heads in steps of a multiple of 64 rows alone (gluon/mla_gluon.py:935).
"""

import dataclasses
import functools
from types import ModuleType

import torch
from attn_fuzz import foreign
from attn_fuzz.emulated import jobs
from attn_fuzz.findings.aiter.gluon import GLUON_PREFILL_SPARSE, GLUON_PREFILL_SPARSE_GFX1250, GLUON_SPARSE
from attn_fuzz.interpreted.aiter import ARCHITECTURE
from attn_fuzz.targets.packages.aiter.package import GLUON, HOST, load_main, needs_main
from attn_fuzz.targets.packages.aiter.sparse import AITER_DECODE_SPARSE, ENGINE, sparse_target
from attn_fuzz.targets.packages.aiter.sparse import FILES as DECODE
from attn_fuzz.targets.packages.declaring import choose_config
from attn_fuzz.targets.packages.latent_rows import ENTRIES, dealt, over_slots, ragged, shuffled, two_caches
from attn_fuzz.targets.support import LatentSizes
from attn_fuzz.verdict.rounding import Rounding

TRITON = "ops/triton/_triton_kernels/attention/sparse_attention_dsv4.py"
PREFILL = (
    f"{HOST}pa_prefill_sparse.py",
    TRITON,
    f"{GLUON}gfx1250/attention/pa_prefill_sparse.py",
    "ops/triton/gluon/mla_gluon.py",
)
"""The file with the host code, and those whose kernels it imports."""


@functools.cache
def loaded_triton() -> list[ModuleType]:
    modules = load_main((TRITON,), ARCHITECTURE)
    choose_config(modules, 0)
    return modules


def _by_triton(q, slots, kv_cache, layer, out, rng) -> None:
    (indices, indptr), rows, found = ragged(slots, rng), kv_cache.flatten(0, 1), torch.empty_like(q)
    [module], (queries, heads, width) = loaded_triton(), q.shape
    module._sparse_attn_prefill_kernel[lambda meta: (queries, -(-heads // meta["BLOCK_H"]))](
        q,
        rows,
        indices,
        indptr,
        layer.sinks,
        found,
        *q.stride(),
        *rows.stride(),
        *found.stride(),
        heads,
        width,
        len(rows),
        layer.scale,
        HAS_ATTN_SINK=layer.sinks is not None,
        BLOCK_D=1 << (width - 1).bit_length(),
    )
    out[:] = found


AITER_PREFILL_SPARSE = dataclasses.replace(
    AITER_DECODE_SPARSE,
    name="aiter-prefill-sparse",
    description="the Triton prefill of AITER's sparse_attention_dsv4, over the tokens that each row selects",
    attention=over_slots(_by_triton),
    rounding=lambda device: Rounding(keys_per_tile=16, dot_is_chained=device != "cpu"),
    unavailable=needs_main((TRITON,)),
    modules=loaded_triton,
    findings=(),
)


def _prefill(q, slots, kv_cache, layer, out, rng) -> None:
    architecture = jobs.architecture.get() or "gfx950"
    pool, sinks, has_holes = kv_cache.flatten(0, 1), layer.sinks, bool(((slots[:, :-1] < 0) & (slots[:, 1:] >= 0)).any())
    listed = functools.partial(ragged, rng=rng) if has_holes else _packed
    of_pool, step, of_step = slots, None, (None, None)
    if architecture == "gfx1250":
        of_pool, of_step = dealt(slots, rng)
        step, of_step = shuffled(pool, of_step, 1, rng)
        of_step = listed(of_step)
        sinks = torch.full((layer.num_heads,), -1e30) if sinks is None else sinks
    with foreign.as_on_a_gpu():
        out[:] = load_main(PREFILL, architecture)[0].pa_prefill_sparse(
            q, pool, *listed(of_pool), step, *of_step, sinks, layer.scale
        )


def _packed(slots: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """See `ragged`; entries of -1 are left out."""
    return slots[slots >= 0], torch.nn.functional.pad((slots >= 0).sum(1).cumsum(0), (1, 0)).int()


def _decode(q, slots, kv_cache, layer, out, rng) -> None:
    rows, tokens, moved, entries = two_caches(kv_cache, slots, layer, rng)
    has_entries = bool((entries >= 0).any())
    second = dict(zip(("extra_cache", "extra_indices", "extra_indptr"), (moved, *ragged(entries, rng)), strict=True))
    with foreign.as_on_a_gpu():
        out[:] = load_main(DECODE, "gfx950")[0].pa_decode_sparse(
            q,
            rows,
            *ragged(tokens, rng),
            layer.sinks,
            layer.scale,
            kv_splits=rng.choice((None, 1, 4)),
            **(second if has_entries else {}),
        )


_prefill_target = functools.partial(sparse_target, attention=over_slots(_prefill), files=PREFILL)
AITER_GLUON_PREFILL_SPARSE = _prefill_target(
    "aiter-gluon-prefill-sparse",
    "AITER's pa_prefill_sparse in Gluon, over the tokens that each row selects",
    ("gfx950",),
    rounding=Rounding(keys_per_tile=64, splits=256, dot_is_chained=True, merged_parts=5),
    # as for mla_gluon itself: Triton compiles no loads into LDS of rows that are not aligned
    engine=dataclasses.replace(ENGINE, empty_selections=False, padding=(0, 32)),
    latent=LatentSizes(widths=((512, 0),), group_sizes=(16, 8, 32, 96), block_sizes=(16, 1, 64)),
    findings=GLUON_PREFILL_SPARSE,
)
AITER_GLUON_PREFILL_SPARSE_GFX1250 = _prefill_target(
    "aiter-gluon-prefill-sparse-gfx1250",
    "AITER's pa_prefill_sparse in Gluon for gfx1250, over a pool and the step's own rows",
    ("gfx1250",),
    rounding=Rounding(keys_per_tile=16, dot_is_chained=True, rounds_scaled_query=True),
    findings=GLUON_PREFILL_SPARSE_GFX1250,
)
AITER_GLUON_TWO_CACHES = sparse_target(
    "aiter-gluon-two-caches",
    "AITER's pa_decode_sparse in Gluon, over two caches of 584 bytes a slot",
    ("gfx950",),
    attention=over_slots(_decode),
    files=DECODE,
    rounding=Rounding(keys_per_tile=64, splits=16, dot_is_chained=True),
    findings=GLUON_SPARSE,
    **{name: ENTRIES[name] for name in ("layouts", "cache_dtypes", "scales")},
)
