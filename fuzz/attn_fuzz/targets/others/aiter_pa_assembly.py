"""AITER's paged attention in assembly, pa_fwd_asm: decodes, one workgroup for each request and KV head.

Host code: csrc/py_itfs_cu/asm_pa.cu of the wheel. The scale is 1 / sqrt(D) whatever the caller wants (:115-117), strides are
those of K alone, in 32 bits (:112-114), and the grid is (KV heads, requests, 1) (:250-252).

vLLM 0.33 calls it for decodes of one query each with a shuffled cache (v1/attention/backends/rocm_aiter_fa.py).

Scales of tokens are [NB, HK, BS] (op_tests/test_pa.py of AITER's main, k_scale_asm). Weights of float16 are truncated
(v_cvt_pkrtz_f16_f32), those of bfloat16 rounded. With a float8 cache q and the weights are float8, too. int8 files are left
out: the judge has no bound for weights of int8. So are steps of several queries, which vLLM does not send.

In files with gqa16 or noquant some instructions use what a load brings without a wait for it: aiter_pa_waits.json names them.
What they do not wait for counts as done here.
"""

import dataclasses
import functools
import json
from pathlib import Path

import torch
from attn_contract import AttentionType, Layout
from attn_fuzz import foreign
from attn_fuzz.cases.case import Case
from attn_fuzz.cases.poison import DTYPES
from attn_fuzz.findings.aiter import PA_ASSEMBLY
from attn_fuzz.targets import emulated
from attn_fuzz.targets.choices import choices_by
from attn_fuzz.targets.engine import VLLM
from attn_fuzz.targets.others.aiter_assembly import ARCHITECTURES, LOG2_E, Launch, NoKernelError, attention, missing, table
from attn_fuzz.targets.target import Support
from attn_fuzz.verdict.rounding import Rounding

HEAD_SIZE = 128
_TYPES = {torch.float16: "fp16", torch.bfloat16: "bf16", torch.int8: "int8"}


def choices(architecture: str, q_type: torch.dtype, kv_type: torch.dtype, group: int, block_size: int) -> list[tuple[str, str]]:
    """The files, and their kernels, of which `get_heuristic_kernel` finds one (asm_pa.cu:46-89) for one query of each request.

    With high_precision 1, its default, files of every precision match. Which of them comes first is the order of a hash map.

    Raises:
        NoKernelError: it finds none.
    """
    types = _TYPES[q_type], _TYPES.get(kv_type, "fp8")
    for gqa in (group, -(-group // 8) * 8):
        wanted = (*types, gqa, 0, 0, block_size)
        found = [
            (f"pa/{row['knl_file']}", row["knl_name"])
            for row in table(architecture, "pa/pa_asm.csv")
            if (row["qType"], row["kvType"], *(int(row[name]) for name in ("Gqa", "Mtp", "Msk", "blkSz"))) == wanted
        ]
        if found:
            return found
    raise NoKernelError(f"pa_fwd_asm has no file for q {q_type}, cache {kv_type}, {group} heads, blocks of {block_size}")


def _launches(architecture, q, k, v, kv_cache, layer, batch, out, lse) -> list[Launch]:
    rows, group = batch.num_requests, layer.num_heads // layer.num_kv_heads
    key_cache, value_cache = foreign.packed_keys_and_values(kv_cache, layer)
    found = choices(architecture, q.dtype, key_cache.dtype, group, key_cache.shape[3])
    file, kernel = choices_by((batch.query_start_loc, batch.seq_lens)).choice(found)
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
        group,
    )
    pointers = (out[:rows], q[:rows], key_cache, value_cache, block_table, batch.seq_lens, *scales)
    arguments = {16 * i: each for i, each in enumerate((*pointers, *numbers))}
    arguments |= {240: None}
    return [Launch(file, kernel, (layer.num_kv_heads, rows, 1), arguments, _known_waits().get(f"{architecture}/{file}", ()))]


@functools.cache
def _known_waits() -> dict[str, frozenset[tuple[int, int]]]:
    """By ARCHITECTURE/FILE: lines of loads, and of instructions that use what they bring without a wait for it.

    The file has runs of them: the first load's line, how many lines further the use is, and how many loads follow one another.
    """
    runs: dict[str, list[list[int]]] = json.loads(Path(__file__).with_name("aiter_pa_waits.json").read_text())
    return {
        name: frozenset((first + i, first + i + further) for first, further, count in each for i in range(count))
        for name, each in runs.items()
    }


_ENGINE = dataclasses.replace(
    VLLM,
    query_lens=("one",),
    empty_requests=False,
    other_scales=False,
    scale_signs=(1,),
    fused_qkv=(False,),
    padding=(0,),
)


def _excluded(architecture: str, case: Case) -> str | None:
    cache = case.cache
    assert cache is not None
    try:
        choices(architecture, DTYPES[case.dtype], DTYPES[cache.dtype or case.dtype], case.group_size, cache.block_size)
    except NoKernelError as error:
        return str(error)
    return None


def _support(architecture: str) -> Support:
    return Support(
        attn_types=(AttentionType.DECODER,),
        dtypes=("bfloat16", "float16"),
        layouts=(Layout.SHUFFLED,),
        cache_dtypes=("fp8_e4m3fnuz" if architecture == "gfx942" else "fp8_e4m3fn",),
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
        steps_per_layer=emulated.STEPS_PER_LAYER,
        own_numbers=True,
    )


AITER_PA_ASSEMBLY = emulated.with_architecture(
    "aiter-pa-assembly",
    "AITER's paged attention in assembly, pa_fwd_asm, as vLLM calls it for decodes",
    architectures=ARCHITECTURES,
    attention=attention(_launches),
    support=_support,
    rounding=lambda architecture: Rounding(keys_per_tile=256, dot_is_chained=True, float8_dots=True, truncates_weights=True),
    missing=functools.partial(missing, "pa"),
    findings=PA_ASSEMBLY,
)
