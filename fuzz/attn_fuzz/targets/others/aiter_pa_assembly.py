"""AITER's paged attention in assembly, pa_fwd_asm: decodes, one workgroup for each request and KV head.

Host code: csrc/py_itfs_cu/asm_pa.cu of the wheel. The scale is 1 / sqrt(D) whatever the caller wants (:115-117), strides are
those of K alone, in 32 bits (:112-114), and the grid is (KV heads, requests, 1) (:250-252).

vLLM 0.33 calls it for decodes of one query each with a shuffled cache (v1/attention/backends/rocm_aiter_fa.py).
"""

import dataclasses

import torch
from attn_contract import AttentionType, Layout
from attn_fuzz import foreign
from attn_fuzz.targets import emulated
from attn_fuzz.targets.engine import VLLM
from attn_fuzz.targets.others.aiter_assembly import LOG2_E, Launch, NoKernelError, table, target
from attn_fuzz.targets.target import Support
from attn_fuzz.verdict.rounding import Rounding

HEAD_SIZE, BLOCK = 128, 16
_TYPES = {torch.float16: "fp16", torch.bfloat16: "bf16", torch.int8: "int8"}


def _file(architecture: str, q: torch.Tensor, key_cache: torch.Tensor, group: int, high_precision: int) -> tuple[str, str]:
    """The file and the kernel that `get_heuristic_kernel` finds (asm_pa.cu:46-89) for one query each."""
    kv_type = _TYPES.get(key_cache.dtype, "fp8")
    for gqa in (group, -(-group // 8) * 8):
        for row in table(architecture, "pa/pa_asm.csv"):
            has = row["qType"], row["kvType"], int(row["Gqa"]), int(row["Mtp"]), int(row["Msk"]), int(row["blkSz"])
            if has == (_TYPES[q.dtype], kv_type, gqa, 0, 0, BLOCK) and high_precision in (int(row["Hp"]), 1):
                return f"pa/{row['knl_file']}", row["knl_name"]
    raise NoKernelError(f"pa_fwd_asm has no kernel for q {q.dtype}, cache {key_cache.dtype}, {group} heads for each KV head")


def _launches(architecture, q, k, v, kv_cache, layer, batch, out, lse, *, high_precision: int = 1) -> list[Launch]:
    rows, group = batch.num_requests, layer.num_heads // layer.num_kv_heads
    key_cache, value_cache = foreign.packed_keys_and_values(kv_cache, layer)
    file, kernel = _file(architecture, q, key_cache, group, high_precision)
    scales = [
        None if each is None else each.permute(2, 0, 1).contiguous() for each in (layer.k_scale_cache, layer.v_scale_cache)
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
    return [Launch(file, kernel, (layer.num_kv_heads, rows, 1), arguments | {240: None})]


_ENGINE = dataclasses.replace(
    VLLM,
    query_lens=("one",),
    empty_requests=False,
    other_scales=False,
    scale_signs=(1,),
    fused_qkv=(False,),
    padding=(0,),
)


def _support(architecture: str) -> Support:
    return Support(
        attn_types=(AttentionType.DECODER,),
        dtypes=("bfloat16", "float16"),
        layouts=(Layout.SHUFFLED,),
        cache_dtypes=("fp8_e4m3fnuz" if architecture == "gfx942" else "fp8_e4m3fn", "int8"),
        scales=("token",),
        head_sizes=(HEAD_SIZE,),
        group_sizes=(1, 2, 4, 5, 7, 8, 10, 12, 16),
        block_sizes=(BLOCK,),
        engine=_ENGINE,
        unused_slots="mostly finite",
        tile_sizes=(16, 64, 256),
        max_tokens=4,
        max_seq_len=600,
        long_seq_len=2000,
        steps_per_layer=emulated.STEPS_PER_LAYER,
        own_numbers=True,
    )


AITER_PA_ASSEMBLY = target(
    "aiter-pa-assembly",
    "AITER's paged attention in assembly, pa_fwd_asm, as vLLM calls it for decodes",
    "pa",
    _launches,
    _support,
    lambda architecture: Rounding(keys_per_tile=256, dot_is_chained=True),
)
