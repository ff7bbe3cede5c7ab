"""AITER's pa_decode_sparse, which is in AITER's main and in no wheel: `ATTN_PARITY_AITER=FOLDER` names a checkout of it.

It attends to the slots that each row of q selects, which are given one row after the other, -1 for none. A whole row of the
cache is K and V (DeepSeek-V4). It was read at commit e4048607a5 of ROCm/aiter; paths are below aiter/ops/triton. The kernels
are Triton, and Gluon on gfx950 and gfx1250. The contract cannot say that rows are of 512 float8 with a scale for each 64.

Triton and gfx1250 round q times the scale to the dtype of q (_triton_kernels/attention/pa_decode_sparse.py:118,
_gluon_kernels/gfx1250/attention/pa_decode_sparse.py:188-191), and need sinks, as all models have: -1e30 stands for none. A row
has an entry at least, if only one of -1: nothing writes the output of a row without any, as a graph's padding has it. Gluon
divides by 0 in a row without keys; a query of DeepSeek-V4 always sees the keys of its window.
"""

import dataclasses
import functools

import torch
from attn_fuzz import foreign
from attn_fuzz.emulated import jobs
from attn_fuzz.findings.aiter.gluon import GLUON_SPARSE, GLUON_SPARSE_GFX1250
from attn_fuzz.findings.aiter.sparse import DECODE_SPARSE
from attn_fuzz.interpreted.aiter import ARCHITECTURE
from attn_fuzz.targets.packages.aiter.gluon import latent_target
from attn_fuzz.targets.packages.aiter.package import GLUON, HOST, load_main
from attn_fuzz.targets.packages.latent_rows import SPARSE_TOKENS, over_slots, ragged
from attn_fuzz.targets.support import LatentSizes
from attn_fuzz.verdict.rounding import Rounding

FILES = (
    f"{HOST}pa_decode_sparse.py",
    *(f"{GLUON}{each}/attention/pa_decode_sparse.py" for each in ("gfx950", "gfx1250")),
    "ops/triton/_triton_kernels/attention/pa_decode_sparse.py",
)
"""The file with the host code, and those whose kernels it imports by other names."""
ENGINE = dataclasses.replace(SPARSE_TOKENS, empty_requests=False, unowned_rows=(0,))


def _attend(q, slots, kv_cache, layer, out, rng, *, host: str | None = None) -> None:
    """`host`: the architecture whose kernels the host code takes; None: the one that they are compiled for."""
    architecture = host or jobs.architecture.get()
    assert architecture is not None
    sinks = None if layer.sinks is None else layer.sinks.float()
    if sinks is None and architecture != "gfx950":
        sinks = torch.full((layer.num_heads,), -1e30, device=q.device)
    indices, indptr = ragged(slots, rng, least=1)
    with foreign.as_on_a_gpu():
        out[:] = load_main(FILES, architecture)[0].pa_decode_sparse(
            q=q,
            unified_kv=kv_cache.flatten(0, 1),
            kv_indices=indices,
            kv_indptr=indptr,
            attn_sink=sinks,
            softmax_scale=layer.scale,
            kv_splits=rng.choice((None, 1, 4)),
        )


sparse_target = functools.partial(
    latent_target,
    rules=("head_size_v", "sinks", "non_causal", "per_request_causal", "selection_unit"),
    required_rules=("selection_unit",),
    latent=LatentSizes(widths=((512, 0),), group_sizes=(16, 8, 32, 64, 128), block_sizes=(16, 1, 64)),
    engine=dataclasses.replace(ENGINE, empty_selections=False),
    max_tokens=6,
)
_target = functools.partial(sparse_target, attention=over_slots(_attend), files=FILES)
_ROUNDING = Rounding(keys_per_tile=16, splits=16, dot_is_chained=True)
AITER_GLUON_SPARSE = _target(
    "aiter-gluon-sparse",
    "AITER's pa_decode_sparse in Gluon, over the tokens that each row selects",
    ("gfx950",),
    rounding=_ROUNDING,
    findings=GLUON_SPARSE,
)
AITER_GLUON_SPARSE_GFX1250 = _target(
    "aiter-gluon-sparse-gfx1250",
    "AITER's pa_decode_sparse in Gluon for gfx1250, over the tokens that each row selects",
    ("gfx1250",),
    rounding=dataclasses.replace(_ROUNDING, rounds_scaled_query=True),
    findings=GLUON_SPARSE_GFX1250,
)
AITER_DECODE_SPARSE = dataclasses.replace(
    AITER_GLUON_SPARSE,
    name="aiter-decode-sparse",
    description="AITER's pa_decode_sparse in Triton, over the tokens that each row selects",
    attention=over_slots(functools.partial(_attend, host=ARCHITECTURE)),
    architectures=(),
    support=lambda device: dataclasses.replace(
        AITER_GLUON_SPARSE.support(device),
        dtypes=("bfloat16", "float16"),
        engine=ENGINE,
        unused_slots="NaN",
        max_seq_len=160,
    ),
    rounding=lambda device: dataclasses.replace(_ROUNDING, rounds_scaled_query=True, dot_is_chained=device != "cpu"),
    modules=functools.partial(load_main, FILES, ARCHITECTURE),
    findings=DECODE_SPARSE,
)
