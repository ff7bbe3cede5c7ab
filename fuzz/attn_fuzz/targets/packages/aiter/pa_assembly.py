"""AITER's paged attention in assembly, pa_fwd_asm: decodes, one workgroup for each request and KV head.

Host code: csrc/py_itfs_cu/asm_pa.cu of the wheel. The scale is 1 / sqrt(D) whatever the caller wants (:115-117), strides are
only those of K, in 32 bits (:112-114), and the grid is (KV heads, requests, 1) (:250-252).

vLLM 0.33 calls it for decodes of one query each with a shuffled cache (v1/attention/backends/rocm_aiter_fa.py).

Scales of tokens are [NB, HK, BS] (op_tests/test_pa.py of AITER's main, k_scale_asm). Weights of float16 are truncated
(v_cvt_pkrtz_f16_f32), those of bfloat16 rounded. With a float8 cache q and the weights are float8, too, and with an int8
cache int8: q times 127 over its row's largest magnitude, weights times the scales of their values and 127 over the largest
such product of a tile of 256 keys, both cut toward 0 (v_cvt_i32_f32). v_mfma_i32_16x16x32_i8 sums them exactly, and sums of
weights are float32.

Steps of several queries, which vLLM does not send, have a target of their own. Query i of n sees the keys up to the n - i-th
last one. Files `mtp` read the request's rows at qo_indptr; `gqa10_qlenN` have N queries of 10 heads in their addresses
(`v_mul_u32_u24 v186, 10, v152`; 0xa00 bytes a KV head) and do not read it. Host code chooses them for 10 heads, bfloat16, a
float8 cache and blocks of 1024 alone. It takes any number of queries: from 5 on the `mtp` files compute the first one, without
a mask, and leave the others unwritten, so that steps with more than 4 are not drawn. Where each request has 3 queries, the
float8 and int8 files for 8 heads take the code for 4, and read a row after the request's last one.

In files with gqa16 or noquant some instructions use what a load brings without a wait for it: hazards.json names them.
What they do not wait for counts as done here.
"""

import dataclasses
import functools
import itertools
from collections.abc import Iterable

import torch
from attn_contract import AttentionType, Batch, Layer, Layout
from attn_fuzz import foreign
from attn_fuzz.cases.case import Case
from attn_fuzz.cases.poison import DTYPES
from attn_fuzz.cases.tensors import Step
from attn_fuzz.findings.aiter.pa_assembly import PA_ASSEMBLY, PA_MTP_ASSEMBLY
from attn_fuzz.targets import of_architecture
from attn_fuzz.targets.engine import VLLM
from attn_fuzz.targets.packages.aiter.assembly import (
    ARCHITECTURES,
    LOG2_E,
    AssemblyLaunch,
    NoKernelError,
    attention,
    table,
    unavailable,
)
from attn_fuzz.targets.rng import rng_of_lengths
from attn_fuzz.targets.support import Support
from attn_fuzz.verdict.rounding import Rounding

HEAD_SIZE = 128
_OF_ONE_LAUNCH = {"ps": "0", "qTile": "0", "quant_type": "0"}
"""The values that pa_fwd needs in columns that only main has. Files with other values are those of pa_ps_fwd."""
_TYPES = {torch.float16: "fp16", torch.bfloat16: "bf16", torch.int8: "int8"}


def choices(
    architecture: str, q_type: torch.dtype, kv_type: torch.dtype, group: int, block_size: int, queries: int = 1
) -> list[tuple[str, str]]:
    """The files, and their kernels, of which `get_heuristic_kernel` finds one (asm_pa.cu:46-89 of the wheel, :89-160 of main).

    With high_precision 1, its default, files of every precision match. Which of them comes first is the order of a hash map.

    Args:
        queries: max_qlen, the most queries of a request. Above 1 the mask is on and a column Mtp of 10 + max_qlen comes before
            one of 1 (:52, :177-186).

    Raises:
        NoKernelError: it finds none.
    """
    types = _TYPES[q_type], _TYPES.get(kv_type, "fp8")
    mask = int(queries > 1)
    rows = [row for row in table(architecture, "pa/pa_asm.csv") if _OF_ONE_LAUNCH.items() <= {**_OF_ONE_LAUNCH, **row}.items()]
    for mtp, gqa in itertools.product((queries + 10, 1) if queries > 1 else (0,), (group, -(-group // 8) * 8)):
        wanted = (*types, gqa, mtp, mask, block_size)
        found = [
            (f"pa/{row['co_name']}", row["knl_name"])
            for row in rows
            if (row["qType"], row["kvType"], *(int(row[name]) for name in ("Gqa", "Mtp", "Msk", "blkSz"))) == wanted
        ]
        if found:
            return found
    several = f", {queries} queries" if queries > 1 else ""
    raise NoKernelError(
        f"pa_fwd_asm has no file for q {q_type}, cache {kv_type}, {group} heads, blocks of {block_size}{several}"
    )


def _choice(architecture: str, q: torch.Tensor, kv_cache: torch.Tensor, layer: Layer, batch: Batch) -> tuple[str, str]:
    """The file and the kernel of a call. max_qlen is the most queries that a request has, as AITER's tests give it."""
    group, slots = layer.num_heads // layer.num_kv_heads, kv_cache.shape[2] // (layer.num_kv_heads * layer.head_size)
    queries = int(batch.query_start_loc.diff().max())
    found = choices(architecture, q.dtype, kv_cache.dtype, group, slots, queries)
    return rng_of_lengths(batch).choice(found)


def _has_mtp(architecture: str) -> bool:
    """True if the struct of arguments has max_qlen - 1 before the group's size, as main's (asm_pa.cu:43-46)."""
    return any("ps" in row for row in table(architecture, "pa/pa_asm.csv"))


def _launches(architecture, q, k, v, kv_cache, layer, batch, out, lse) -> list[AssemblyLaunch]:
    key_cache, value_cache = foreign.packed_keys_and_values(kv_cache, layer)
    file, kernel = _choice(architecture, q, kv_cache, layer, batch)
    scales = [
        None if each is None else each.transpose(1, 2).contiguous() for each in (layer.k_scale_cache, layer.v_scale_cache)
    ]
    block_table = batch.block_table
    numbers = (
        LOG2_E / HEAD_SIZE**0.5,
        block_table.stride(0),
        layer.num_kv_heads,
        q.stride(0) * q.element_size(),
        key_cache.stride(0) * key_cache.element_size(),
        key_cache.stride(1) * key_cache.element_size(),
        *((int(batch.query_start_loc.diff().max()) - 1,) if _has_mtp(architecture) else ()),
        layer.num_heads // layer.num_kv_heads,
    )
    tokens = int(batch.query_start_loc[-1])
    pointers = (out[:tokens], q[:tokens], key_cache, value_cache, block_table, batch.seq_lens, *scales)
    arguments = {16 * i: each for i, each in enumerate((*pointers, *numbers, batch.query_start_loc))}
    return [AssemblyLaunch(file, kernel, (layer.num_kv_heads, batch.num_requests, 1), arguments)]


def _events(architecture: str, step: Step) -> Iterable[str]:
    if step.kv_cache is not None:
        yield _choice(architecture, step.q, step.kv_cache, step.layer, step.batch)[0].removeprefix("pa/")


_ENGINE = dataclasses.replace(
    VLLM,
    query_lens=("one",),
    empty_requests=False,
    other_scales=False,
    scale_signs=(1,),
    fused_qkv=(False,),
    padding=(0,),
    cited={"other_scales": "csrc/py_itfs_cu/asm_pa.cu:115-117"},
)
_MAX_QUERIES = 4
"""Files for several queries have code for 2, 3 and 4, and take any other number for 1: `s_cmp_eq_i32 s60, s86`."""


def _excluded(architecture: str, case: Case) -> str | None:
    cache, queries = case.cache, {request.query_len for request in case.requests}
    assert cache is not None
    if (most := max(queries, default=1)) > _MAX_QUERIES:
        return f"{most} queries of a request, at most {_MAX_QUERIES}"
    try:
        dtypes = DTYPES[case.dtype], DTYPES[cache.dtype or case.dtype]
        [(file, _), *_] = choices(architecture, *dtypes, case.group_size, cache.block_size, most)
    except NoKernelError as error:
        return str(error)
    # these find a request's rows by its number, and do not read where its queries begin
    if "_qlen" in file and len(queries) > 1:
        return f"{file}: requests of {sorted(queries)} queries, only of {most} each"
    return None


def _support(architecture: str) -> Support:
    return Support(
        attn_types=(AttentionType.DECODER,),
        dtypes=("bfloat16", "float16"),
        layouts=(Layout.SHUFFLED,),
        cache_dtypes=("fp8_e4m3fnuz" if architecture == "gfx942" else "fp8_e4m3fn", "int8"),
        scales=("token",),
        head_sizes=(HEAD_SIZE,),
        group_sizes=(1, 2, 4, 5, 7, 8, 10, 12, 16),
        block_sizes=(16, 1024),
        engine=_ENGINE,
        exclude=functools.partial(_excluded, architecture),
        unused_slots="mostly finite",
        tile_sizes=(16, 64, 256),
        max_tokens=4,
        max_seq_len=600,
        long_seq_len=2000,
    )


def _support_of_several(architecture: str) -> Support:
    return dataclasses.replace(
        _support(architecture),
        engine=dataclasses.replace(_ENGINE, query_lens=("equal", "any")),
        tile_sizes=(4, 16, 64, 256),
        max_tokens=8,
        long_seq_len=None,
    )


def _rounding(architecture: str) -> Rounding:
    return Rounding(keys_per_tile=256, dot_is_chained=True, float8_dots=True, int8_dots=True, truncates_weights=True)


AITER_PA_ASSEMBLY = of_architecture.with_architecture(
    "aiter-pa-assembly",
    "AITER's paged attention in assembly, pa_fwd_asm, as vLLM calls it for decodes",
    architectures=ARCHITECTURES,
    attention=attention(_launches),
    support=_support,
    rounding=_rounding,
    unavailable=functools.partial(unavailable, "pa"),
    events=_events,
    findings=PA_ASSEMBLY,
)
AITER_PA_MTP_ASSEMBLY = of_architecture.with_architecture(
    "aiter-pa-mtp-assembly",
    "the same for requests of up to four queries, as AITER's tests call it (op_tests/test_pa_mtp.py)",
    architectures=ARCHITECTURES,
    attention=attention(_launches),
    support=_support_of_several,
    rounding=_rounding,
    unavailable=functools.partial(unavailable, "pa"),
    events=_events,
    findings=PA_MTP_ASSEMBLY,
)
