"""AITER's latent attention in assembly: mla_decode_fwd and mla_prefill_fwd, the Python of aiter/mla.py around its code objects.

Host code in Python is AITER's own: it splits the keys, makes the workspace, and merges the splits by a Triton kernel, which
Triton's interpreter runs. The C++ below it is read in csrc/py_itfs_cu/asm_mla.cu of the wheel: struct (:10-54), numbers
(:76-108), choice of a file (:161-335), grid (:340-350), and the same of prefills (:366-447).

vLLM's ROCM_AITER_MLA hands a cache on as pages of one slot (_aiter_ops.py:775-784 of 0.33), in steps in which all requests have
the same number of queries (v1/attention/backends/mla/rocm_aiter_mla.py). SGLang calls mla_prefill_fwd for prefills
(layers/attention/aiter_backend.py:3970 of 0.5.23).
"""

import dataclasses
import functools
import random
import re
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from attn_contract import AttentionType, Layout
from attn_fuzz import foreign
from attn_fuzz.cases.case import Case
from attn_fuzz.findings.aiter import MLA_ASSEMBLY, MLA_PERSISTENT, MLA_PREFILL_ASSEMBLY
from attn_fuzz.targets import emulated
from attn_fuzz.targets.engine import VLLM
from attn_fuzz.targets.packages import aiter_assembly, aiter_mla_metadata, sglang_package
from attn_fuzz.targets.packages.aiter_assembly import ARCHITECTURES, Launch, NoKernelError, attention, missing
from attn_fuzz.targets.rng import rng_of_call
from attn_fuzz.targets.target import LatentSizes, Support, Target
from attn_fuzz.verdict.rounding import LARGEST, Rounding

HEAD_SIZE, VALUE_SIZE = 576, 512
FLOAT8 = {"gfx942": torch.float8_e4m3fnuz, "gfx950": torch.float8_e4m3fn}
COMPUTE_UNITS = {"gfx942": 304, "gfx950": 256}
"""Compute units of an MI300X and an MI355X: mla_decode_fwd chooses the splits by them."""
SPLITS = (None, None, 1, 3, 16)
"""None: mla_decode_fwd chooses, as engines have it."""
PARTS = (-1, -1, 1, 2, 4)
"""max_split_per_batch of metadata. -1: as vLLM 0.33 has it (v1/attention/backends/mla/rocm_aiter_mla.py:1752-1773)."""
MOST_QUERIES_OF_FLOAT8 = 4
"""aiter/mla.py:119-133 and asm_mla.cu:279-282."""
_BF16 = torch.bfloat16
_FILES = {
    (_BF16, _BF16, 128, None): ("mla_dec_stage1_bf16_a16w16_subQ128_mqa128", 128),
    (_BF16, _BF16, 16, 1): ("mla_dec_stage1_bf16_a16w16_subQ16_mqa16", 16),
    (_BF16, _BF16, 16, 4): ("mla_a16w16_qh16_m16x4_n16x1_coex0_mask1", 128),
    (_BF16, _BF16, 16, None): ("mla_a16w16_qh16_m32x4_n16x1_coex0_mask1", 128),
    ("fp8", "fp8", 16, 1): ("mla_a8w8_qh16_qseqlen1_gqaratio16", 128),
    ("fp8", "fp8", 16, 2): ("mla_a8w8_qh16_qseqlen2_gqaratio16", 128),
    ("fp8", "fp8", 16, 4): ("mla_a8w8_qh16_qseqlen4_gqaratio16", 128),
    ("fp8", "fp8", 128, None): ("mla_a8w8_qh128_m32x4_n16x2_msk1", 128),
}
"""Without metadata: by the dtypes of q and of the cache, the heads, and the most queries of a request (None: any number): the
file, and the rows of q that a workgroup has (asm_mla.cu:161-335). The first one that fits counts."""
_PERSISTENT_FILES = {
    (_BF16, _BF16, 16, 4): ("mla_a16w16_qh16_m16x4_n16x1_coex0_mask1_ps", 128),
    (_BF16, "fp8", 16, 4): ("mla_a16w8_qh16_m16x4_n16x1_coex0_mask1_ps", 128),
    ("fp8", "fp8", 16, 1): ("mla_a8w8_qh16_qseqlen1_gqaratio16_ps", 128),
    ("fp8", "fp8", 16, 2): ("mla_a8w8_qh16_qseqlen2_gqaratio16_ps", 128),
    ("fp8", "fp8", 16, 4): ("mla_a8w8_qh16_qseqlen4_gqaratio16_ps", 128),
    ("fp8", "fp8", 128, None): ("mla_a8w8_qh128_m32x4_n16x2_msk0_ps", 128),
}
"""The same with metadata."""
IN_STEP = re.compile("a8w8_qh16")
"""Files that are right only if waves keep in step: docs/reference/emulator.md says what is not ordered in them."""
_PREFILL_FILES = {16: "mla_pfl_bf16_a16w16_causal_subQ16_mqa16", 128: "mla_pfl_bf16_a16w16_causal_subQ128_mqa128"}
_PREFILL_ROWS = 128


def file_of(q: torch.Tensor, kv: torch.Tensor, max_seqlen_q: int, *, persistent: bool = False) -> tuple[str, int]:
    """The file that a decode takes, and the rows of q of a workgroup.

    Raises:
        NoKernelError: host code raises.
    """
    dtypes = ("fp8" if each.dtype in FLOAT8.values() else each.dtype for each in (q, kv))
    files = _PERSISTENT_FILES if persistent else _FILES
    if found := _file(files, (*dtypes, q.shape[1] // kv.shape[2]), max_seqlen_q):
        return found
    raise NoKernelError(f"no file for q {q.dtype}, cache {kv.dtype}, {q.shape[1]} heads, {max_seqlen_q} queries")


def _file(files: dict[tuple, tuple[str, int]], wanted: tuple, max_seqlen_q: int) -> tuple[str, int] | None:
    fits = (found for (*has, most), found in files.items() if tuple(has) == wanted and max_seqlen_q <= (most or max_seqlen_q))
    return next(fits, None)


class _Torch:
    """torch, whose tensors lie on the CPU: get_meta_param makes one on "cuda" (mla.py:163)."""

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)

    def arange(self, *arguments: Any, device: object = None, **options: Any) -> torch.Tensor:
        return torch.arange(*arguments, **options)


@functools.cache
def _module(architecture: str) -> ModuleType:
    """aiter/mla.py as it is. Its C++ functions are set for each call."""
    float8 = FLOAT8[architecture]
    dtypes = SimpleNamespace(fp8=float8, bf16=torch.bfloat16, fp16=torch.float16, fp32=torch.float32)
    stubs = {
        "aiter": {"dtypes": dtypes},
        "aiter.jit.utils.chip_info": {"get_cu_num": lambda: COMPUTE_UNITS[architecture], "get_gfx": lambda: architecture},
    }
    [module] = foreign.load("aiter", ("mla.py",), stubs=stubs)
    module.torch = _Torch()  # pyright: ignore[reportAttributeAccessIssue]
    return module


def _arguments(numbers: tuple[Any, ...]) -> dict[int, Any]:
    return {16 * place: each for place, each in enumerate(numbers)}


def _numbers(q: torch.Tensor, kv: torch.Tensor, scale: float, rows: int, splits: int, queries: int) -> tuple[float | int, ...]:
    page_size = kv.shape[1]
    strides = (q.stride(0) * q.element_size() * queries, kv.stride(0) * kv.element_size())
    return scale, rows, splits, *strides, page_size.bit_length() - 1


def _decode_stage(
    run, q, kv, qo_indptr, kv_indptr, kv_indices, last_page_lens, splits_indptr, meta, work_indptr, work_info,
    max_seqlen_q, scale, logits, lse, out, q_scale=None, kv_scale=None,
) -> None:  # fmt: skip
    """mla_decode_stage1_asm_fwd."""
    persistent = splits_indptr is None
    file, sub_q = file_of(q, kv, max_seqlen_q, persistent=persistent)
    splits, rows = logits.shape[1], q.shape[1] // kv.shape[2] * max_seqlen_q
    pointers = (logits, lse, q, kv, kv_indptr, kv_indices, last_page_lens)
    numbers = _numbers(q, kv, scale, rows, splits, max_seqlen_q)
    meta = (work_indptr, work_info) if persistent else splits_indptr
    arguments = _arguments((*pointers, *numbers, qo_indptr, meta, out, q_scale, kv_scale, splits))
    grid = (len(work_indptr) - 1, 1, 1) if persistent else (-(-rows // sub_q), len(qo_indptr) - 1, splits)
    run(file, grid, arguments)


def _prefill_stage(
    run, q, kv, qo_indptr, kv_indptr, kv_indices, last_page_lens, max_seqlen_q, scale, logits, lse
) -> None:  # fmt: skip
    """mla_prefill_asm_fwd."""
    group, splits = q.shape[1] // kv.shape[2], logits.shape[1]
    pointers = (logits, lse, q, kv, kv_indptr, kv_indices, last_page_lens)
    arguments = _arguments((*pointers, *_numbers(q, kv, scale, group, splits, 1), qo_indptr))
    run(_PREFILL_FILES[group], (-(-max_seqlen_q * group // _PREFILL_ROWS), len(qo_indptr) - 1, splits), arguments)


def _attend(architecture: str, q, kv_cache, layer, batch, out, *, kind: str = "decode") -> None:
    if (layer.head_size, layer.value_size) != (HEAD_SIZE, VALUE_SIZE):
        raise NotImplementedError(f"heads of {layer.head_size} and {layer.value_size}: it writes {VALUE_SIZE} whatever out has")
    module, rng = _module(architecture), rng_of_call(q, batch)
    rows, requests = int(batch.query_start_loc[-1]), batch.num_requests
    schedules = emulated.schedules(rng)

    def run(file: str, grid: tuple[int, int, int], arguments: dict[int, Any]) -> None:
        launch = Launch(f"mla/{file}.co", f"_ZN5aiter{len(file)}{file}E", grid, arguments, in_step=bool(IN_STEP.search(file)))
        aiter_assembly.run(launch, architecture, schedules)

    indptr, indices = sglang_package.slots(batch, torch.zeros_like(batch.seq_lens), batch.seq_lens, kv_cache.shape[1])
    kv, query = kv_cache.reshape(-1, 1, 1, layer.head_size), q[:rows].contiguous()
    new_out = torch.empty(rows, layer.num_heads, layer.value_size, dtype=out.dtype)
    most = int(batch.query_start_loc.diff().max())
    # pages of one slot
    common = (batch.query_start_loc[: requests + 1], indptr, indices.int(), torch.ones_like(batch.seq_lens), most)
    if kind == "prefill":
        module.aiter.mla_prefill_asm_fwd = functools.partial(_prefill_stage, run)
        module.mla_prefill_fwd(query, kv, new_out, *common, sm_scale=layer.scale)
    else:
        options = _splits(architecture, common, layer.num_heads, rng, persistent=kind != "decode")
        if layer.kv_cache_dtype is not None:
            options["kv_scale"] = layer.k_scale.reshape(1)
            if kind != "persistent-a16w8":
                q_scale = torch.tensor([2.0 ** -_spare_bits(query, layer.kv_cache_dtype)])
                query = (query.float() / q_scale).to(layer.kv_cache_dtype)
                options["q_scale"] = q_scale
        module.aiter.mla_decode_stage1_asm_fwd = functools.partial(_decode_stage, run)
        module.aiter.mla_reduce_v1 = aiter_mla_metadata.reduce
        module.mla_decode_fwd(query, kv, new_out, *common, sm_scale=layer.scale, **options)
    out[:rows] = new_out


def _splits(architecture: str, common: tuple[Any, ...], heads: int, rng: random.Random, *, persistent: bool) -> dict[str, Any]:
    """Arguments that split the keys: by mla_decode_fwd, by a number, or by metadata, whose pointers `_decode_stage` makes."""
    if not persistent:
        return {"num_kv_splits": rng.choice(SPLITS)}
    units = COMPUTE_UNITS[architecture]
    qo_indptr, kv_indptr = common[:2]
    made = aiter_mla_metadata.metadata(qo_indptr, kv_indptr, heads, units, rng.choice(PARTS))
    return {"work_meta_data": torch.empty(2, dtype=torch.int64), **made._asdict()}


def _spare_bits(q: torch.Tensor, dtype: torch.dtype) -> int:
    """By which power of two q fits a float8. Engines take a calibrated number, or 1."""
    largest = float(q.float().abs().nan_to_num(0.0, posinf=0.0).max())
    return int(torch.tensor(LARGEST[dtype] / max(largest, 2.0**-100)).log2().floor())


def _launches(architecture, q, k, v, kv_cache, layer, batch, out, lse, *, kind: str = "decode") -> tuple[Launch, ...]:
    """Runs them by itself: AITER's Python launches them, and goes on behind them."""
    _attend(architecture, q, kv_cache, layer, batch, out, kind=kind)
    return ()


_ENGINE = dataclasses.replace(
    VLLM,
    query_lens=("one", "equal"),
    empty_requests=False,
    planes=(False,),
    fused_qkv=(False,),
)


def _excluded(case: Case) -> str | None:
    if case.is_quantized and any(request.query_len > MOST_QUERIES_OF_FLOAT8 for request in case.requests):
        return "float8 and more than 4 queries of a request, for which get_meta_param and asm_mla.cu have no entry"
    return None


def _support(architecture: str, **fields: Any) -> Support:
    return Support(
        attn_types=(AttentionType.DECODER,),
        dtypes=("bfloat16",),
        layouts=(Layout.LATENT,),
        rules=("head_size_v",),
        required_rules=("head_size_v",),
        latent=LatentSizes(widths=((VALUE_SIZE, HEAD_SIZE - VALUE_SIZE),), group_sizes=(16, 128), block_sizes=(1, 16)),
        unused_slots="mostly finite",
        steps_per_layer=emulated.STEPS_PER_LAYER,
        own_numbers=True,
        **fields,
    )


def _persistent_excluded(kind: str, case: Case) -> str | None:
    if reason := _excluded(case):
        return reason
    cache_type = "fp8" if case.is_quantized else _BF16
    q_type = _BF16 if kind == "persistent-a16w8" else cache_type
    most = max((request.query_len for request in case.requests), default=1)
    if _file(_PERSISTENT_FILES, (q_type, cache_type, case.group_size), most) is None:
        return f"no file with metadata for q {q_type}, cache {cache_type}, {case.group_size} heads, {most} queries"
    return None


def _decode_support(architecture: str) -> Support:
    return _support(
        architecture,
        cache_dtypes=("fp8_e4m3fnuz" if architecture == "gfx942" else "fp8_e4m3fn",),
        scales=("tensor",),
        engine=_ENGINE,
        exclude=_excluded,
        tile_sizes=(16, 64, 128),
        max_tokens=8,
        max_seq_len=300,
    )


def _persistent_support(architecture: str, *, kind: str) -> Support:
    return dataclasses.replace(_decode_support(architecture), exclude=functools.partial(_persistent_excluded, kind))


def _prefill_support(architecture: str) -> Support:
    return _support(
        architecture,
        engine=dataclasses.replace(_ENGINE, query_lens=("any",)),
        tile_sizes=(16, 32, 128),
        max_tokens=24,
        max_seq_len=160,
    )


AITER_MLA_ASSEMBLY = emulated.with_architecture(
    "aiter-mla-assembly",
    "AITER's latent decode in assembly, mla_decode_fwd, as vLLM calls it",
    architectures=ARCHITECTURES,
    attention=attention(_launches),
    support=_decode_support,
    rounding=lambda architecture: Rounding(keys_per_tile=32, dot_is_chained=True, splits=16, float8_dots=True),
    missing=functools.partial(missing, "mla"),
    findings=MLA_ASSEMBLY,
)
AITER_MLA_PREFILL_ASSEMBLY = emulated.with_architecture(
    "aiter-mla-prefill-assembly",
    "AITER's latent prefill in assembly, mla_prefill_fwd, as SGLang calls it",
    architectures=ARCHITECTURES,
    attention=attention(functools.partial(_launches, kind="prefill")),
    support=_prefill_support,
    rounding=lambda architecture: Rounding(keys_per_tile=32, dot_is_chained=True),
    missing=functools.partial(missing, "mla"),
    findings=MLA_PREFILL_ASSEMBLY,
)


_OF_FLOAT8_QUERIES = ("aiter-mla-empty-works", "aiter-mla-unscaled-values")


def _persistent(name: str, kind: str, q: str) -> Target:
    rounding = Rounding(keys_per_tile=128, dot_is_chained=True, splits=16, float8_dots=kind == "persistent")
    return emulated.with_architecture(
        name,
        f"AITER's persistent latent decode in assembly, mla_decode_fwd with metadata, {q}",
        architectures=("gfx942",),
        attention=attention(functools.partial(_launches, kind=kind)),
        support=functools.partial(_persistent_support, kind=kind),
        rounding=lambda architecture: rounding,
        missing=functools.partial(missing, "mla"),
        findings=tuple(each for each in MLA_PERSISTENT if kind == "persistent" or each.name not in _OF_FLOAT8_QUERIES),
    )


AITER_MLA_PERSISTENT = _persistent("aiter-mla-persistent", "persistent", "q of the cache's dtype")
AITER_MLA_PERSISTENT_A16W8 = _persistent("aiter-mla-persistent-a16w8", "persistent-a16w8", "q of bfloat16")
