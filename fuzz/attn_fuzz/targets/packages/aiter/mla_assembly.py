"""AITER's latent attention in assembly: mla_decode_fwd and mla_prefill_fwd, the Python of aiter/mla.py around its code objects.

Host code in Python is AITER's own: it splits the keys, makes the workspace, and merges the splits by a Triton kernel, which
Triton's interpreter runs. The C++ below it is read in csrc/py_itfs_cu/asm_mla.cu. Of the wheel: struct (:10-54), numbers
(:76-108), choice of a file (:161-335), grid (:340-350), and the same of prefills (:366-447). Of main (e4048607): struct
(:33-79), numbers (:712-787), choice (:834-1008) by mla/mla_asm.csv, grid (:1031-1041), and prefills (:1206-1303).

With metadata, main's Python computes 32 and more heads as 16 heads of more requests where no file has them.

vLLM's ROCM_AITER_MLA hands a cache on as pages of one slot (_aiter_ops.py:775-784 of 0.33), in steps in which all requests have
the same number of queries (v1/attention/backends/mla/rocm_aiter_mla.py). SGLang calls mla_prefill_fwd for prefills
(layers/attention/aiter_backend.py:3970 of 0.5.23).
"""

import contextlib
import dataclasses
import functools
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from types import ModuleType, SimpleNamespace
from typing import Any, NamedTuple

import torch
from attn_contract import AttentionType, Batch, Layer, Layout
from attn_fuzz import foreign
from attn_fuzz.cases.case import Case
from attn_fuzz.findings.aiter.mla_assembly import MLA_ASSEMBLY, MLA_ASSEMBLY_OF_MAIN, MLA_PERSISTENT, MLA_PREFILL_ASSEMBLY
from attn_fuzz.targets import of_architecture
from attn_fuzz.targets.engine import VLLM
from attn_fuzz.targets.packages.aiter import assembly as aiter_assembly
from attn_fuzz.targets.packages.aiter import mla_metadata as aiter_mla_metadata
from attn_fuzz.targets.packages.aiter.assembly import ARCHITECTURES, AssemblyLaunch, NoKernelError, unavailable
from attn_fuzz.targets.packages.slots import slots_of_requests
from attn_fuzz.targets.rng import rng_of_call
from attn_fuzz.targets.rows import rows_of
from attn_fuzz.targets.support import LatentSizes, Support
from attn_fuzz.targets.target import Target
from attn_fuzz.verdict.rounding import LARGEST, Rounding

HEAD_SIZE, VALUE_SIZE = 576, 512
FLOAT8 = {"gfx942": torch.float8_e4m3fnuz, "gfx950": torch.float8_e4m3fn}
COMPUTE_UNITS = {"gfx942": 304, "gfx950": 256}
"""Compute units of an MI300X and an MI355X: mla_decode_fwd chooses the splits by them."""
SPLITS = (None, None, 1, 3, 16)
"""None: mla_decode_fwd chooses, as engines have it."""
PARTS = (-1, -1, 1, 2, 4)
"""max_split_per_batch of metadata. -1: as vLLM 0.33 has it (v1/attention/backends/mla/rocm_aiter_mla.py:1752-1773)."""
MAX_QUERIES_OF_FLOAT8 = 4
"""aiter/mla.py:119-133 and asm_mla.cu:279-282 of the wheel, aiter/mla.py:345-359 of main."""
_FILES = {
    ("bf16", "bf16", 128, None): ("mla_dec_stage1_bf16_a16w16_subQ128_mqa128", 128),
    ("bf16", "bf16", 16, 1): ("mla_dec_stage1_bf16_a16w16_subQ16_mqa16", 16),
    ("bf16", "bf16", 16, 4): ("mla_a16w16_qh16_m16x4_n16x1_coex0_mask1", 128),
    ("bf16", "bf16", 16, None): ("mla_a16w16_qh16_m32x4_n16x1_coex0_mask1", 128),
    ("fp8", "fp8", 16, 1): ("mla_a8w8_qh16_qseqlen1_gqaratio16", 128),
    ("fp8", "fp8", 16, 2): ("mla_a8w8_qh16_qseqlen2_gqaratio16", 128),
    ("fp8", "fp8", 16, 4): ("mla_a8w8_qh16_qseqlen4_gqaratio16", 128),
    ("fp8", "fp8", 128, None): ("mla_a8w8_qh128_m32x4_n16x2_msk1", 128),
}
"""The wheel's kernels without metadata (asm_mla.cu:161-335). A key has the types of q and of the cache, the heads, and the most
queries of a request (None: any number). A value has the file and the rows of q of a workgroup. The first that fits counts."""
_PERSISTENT_FILES = {
    ("bf16", "bf16", 16, 4): ("mla_a16w16_qh16_m16x4_n16x1_coex0_mask1_ps", 128),
    ("bf16", "fp8", 16, 4): ("mla_a16w8_qh16_m16x4_n16x1_coex0_mask1_ps", 128),
    ("fp8", "fp8", 16, 1): ("mla_a8w8_qh16_qseqlen1_gqaratio16_ps", 128),
    ("fp8", "fp8", 16, 2): ("mla_a8w8_qh16_qseqlen2_gqaratio16_ps", 128),
    ("fp8", "fp8", 16, 4): ("mla_a8w8_qh16_qseqlen4_gqaratio16_ps", 128),
    ("fp8", "fp8", 128, None): ("mla_a8w8_qh128_m32x4_n16x2_msk0_ps", 128),
}
"""The same with metadata."""
_ASKED = {
    ("bf16", "bf16", 128, None): (0, 128),
    ("bf16", "bf16", 64, 1): (1, 64),
    ("bf16", "bf16", 64, None): (0, 64),
    ("bf16", "bf16", 32, None): (0, 64),
    ("bf16", "bf16", 16, 1): (1, 16),
    ("bf16", "bf16", 16, 4): (4, 128),
    ("bf16", "bf16", 16, None): (8, 128),
    ("bf16", "bf16", 8, 1): (1, 8),
    ("bf16", "bf16", 8, 2): (2, 16),
    ("fp8", "fp8", 128, None): (0, 128),
    ("fp8", "fp8", 32, 1): (1, 32),
    ("fp8", "fp8", 16, 1): (1, 128),
    ("fp8", "fp8", 16, 2): (2, 128),
    ("fp8", "fp8", 16, 4): (4, 64),
    ("fp8", "fp8", 8, 1): (1, 8),
}
"""Main's kernels, by the same key: the column qSeqLen of the files, and the rows of q of a workgroup (asm_mla.cu:853-976)."""
_PERSISTENT_ASKED = {
    ("bf16", "bf16", 16, 4): (4, 128),
    ("bf16", "bf16", 8, 1): (1, 128),
    ("bf16", "bf16", 8, 2): (2, 128),
    ("bf16", "fp8", 16, 4): (4, 128),
    ("fp8", "fp8", 128, None): (0, 128),
    ("fp8", "fp8", 64, 1): (1, 128),
    ("fp8", "fp8", 16, 1): (1, 128),
    ("fp8", "fp8", 16, 2): (2, 128),
    ("fp8", "fp8", 16, 4): (4, 128),
}
"""The same with metadata, on gfx942."""
IN_STEP = re.compile("a8w8_qh(8|16|64)_|qh8_qseqlen2")
"""Files that are right only if waves keep in step: docs/reference/emulator.md says what is not ordered in them."""
_PREFILL_FILES = {16: "mla_pfl_bf16_a16w16_causal_subQ16_mqa16", 128: "mla_pfl_bf16_a16w16_causal_subQ128_mqa128"}
_PREFILL_ROWS = 128


_DECODE = (
    *("q", "kv", "qo_indptr", "kv_indptr", "kv_indices", "last_page_lens", "splits_indptr", "metadata", "work_indptr"),
    *("work_info", "max_seqlen_q", "scale", "logits", "lse", "out", "q_scale", "kv_scale"),
)
"""The parameters of mla_decode_stage1_asm_fwd."""
_DECODE_OF_MAIN = (*_DECODE[:11], "page_size", "num_kv_heads", *_DECODE[11:15], "final_lse", *_DECODE[15:])


class Decode(NamedTuple):
    """A way to call mla_decode_fwd.

    Attributes:
        has_metadata: True if metadata splits the keys, for persistent kernels.
        narrows_q: True if q has float8 where the cache has.
    """

    has_metadata: bool = False
    narrows_q: bool = True

    def types(self, *, is_quantized: bool) -> tuple[str, str]:
        """The types of q and of the cache in a call."""
        cache = "fp8" if is_quantized else "bf16"
        return cache if self.narrows_q else "bf16", cache


PLAIN, PERSISTENT, PERSISTENT_A16W8 = Decode(), Decode(has_metadata=True), Decode(has_metadata=True, narrows_q=False)


class LatentKernel(NamedTuple):
    """A file below hsa/ARCHITECTURE/mla, its kernel, and the rows of q that a workgroup has."""

    file: str
    kernel: str
    rows: int


def table(architecture: str) -> Sequence[Mapping[str, str]]:
    """The rows of mla/mla_asm.csv; none of the wheel, whose host code names files."""
    return aiter_assembly.table(architecture, "mla/mla_asm.csv")


def _by_name(file: str, rows: int) -> LatentKernel:
    return LatentKernel(f"{file}.co", f"_ZN5aiter{len(file)}{file}E", rows)


def choices(architecture: str, q: str, kv: str, heads: int, queries: int, *, persistent: bool = False) -> list[LatentKernel]:
    """The files of which host code takes one for a decode. Where main's table has several, the order of a hash map decides.

    Args:
        q, kv: the types "bf16" or "fp8".
        heads: the number of heads of q, on one KV head.
        queries: the most of a request.

    Raises:
        NoKernelError: host code raises.
    """
    rows = table(architecture)
    if rows:
        asked = _first(_PERSISTENT_ASKED if persistent else _ASKED, (q, kv, heads), queries)
        found = [_of_table(rows, asked[1], q, kv, heads, ps=persistent, queries=asked[0])] if asked else [[]]
    else:
        file = _first(_PERSISTENT_FILES if persistent else _FILES, (q, kv, heads), queries)
        found = [[_by_name(*file)]] if file else [[]]
    if not found[0]:
        metadata = " with metadata" * persistent
        raise NoKernelError(f"no file{metadata} for q {q}, cache {kv}, {heads} heads, {queries} queries")
    return found[0]


def _first(entries: Mapping[tuple, tuple], wanted: tuple, queries: int) -> Any:
    fits = (entry for (*has, most), entry in entries.items() if tuple(has) == wanted and queries <= (most or queries))
    return next(fits, None)


def _of_table(
    rows: Sequence[Mapping[str, str]], sub_q: int, q: str, kv: str, heads: int,
    *, queries: int, ps: bool = False, prefill: bool = False,
) -> list[LatentKernel]:  # fmt: skip
    """The kernels that main's get_heuristic_kernel_mla may find (asm_mla.cu:142-178). Decodes are causal, prefills are not."""
    numbers = {"Gqa": heads, "ps": ps, "qSeqLen": queries, "prefill": prefill, "causal": not prefill, "lse": 0, "cprr": 0}
    wanted = {"qType": q, "kvType": kv} | {name: str(int(number)) for name, number in numbers.items()}
    return [
        LatentKernel(row["co_name"], row["knl_name"], sub_q) for row in rows if wanted.items() <= {"cprr": "0", **row}.items()
    ]


def folds(architecture: str, q: str, kv: str, heads: int, queries: int) -> int:
    """The number of requests of 16 heads that stand for one request with metadata (main's aiter/mla.py:666-753, on gfx942)."""
    is_native = heads in (8, 16) or (q == kv == "fp8" and (heads == 128 or (heads, queries) == (64, 1)))
    return 1 if is_native or not table(architecture) else max(1, heads // 16)


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
    dtypes = SimpleNamespace(fp8=float8, bf16=torch.bfloat16, fp16=torch.float16, fp32=torch.float32, i32=torch.int32)
    stubs = {
        "aiter": {"dtypes": dtypes},
        "aiter.jit.utils.chip_info": {"get_cu_num": lambda: COMPUTE_UNITS[architecture], "get_gfx": lambda: architecture},
        "aiter.jit.core": {"is_experimental_enabled": lambda: False},
        "aiter.ops.attention": {"get_mla_decode_fwd_max_splits": lambda *call: COMPUTE_UNITS[architecture]},
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


def _decode_stage(run, architecture: str, rng: random.Random, *given: Any) -> None:
    """mla_decode_stage1_asm_fwd, of the arguments that AITER's Python hands it."""
    is_main = bool(table(architecture))
    call = SimpleNamespace(q_scale=None, kv_scale=None)
    vars(call).update(zip(_DECODE_OF_MAIN if is_main else _DECODE, given, strict=False))
    persistent = call.splits_indptr is None
    heads, splits, queries = call.q.shape[1] // call.kv.shape[2], call.logits.shape[1], call.max_seqlen_q
    found = choices(architecture, _type(call.q), _type(call.kv), heads, queries, persistent=persistent)
    file, kernel, sub_q = rng.choice(found)
    rows = heads * queries
    counted = heads if is_main and (heads, queries, persistent) == (8, 2, False) else rows
    pointers = (call.logits, call.lse, call.q, call.kv, call.kv_indptr, call.kv_indices, call.last_page_lens)
    numbers = _numbers(call.q, call.kv, call.scale, counted, splits, queries)
    metadata = (call.work_indptr, call.work_info) if persistent else call.splits_indptr
    no_lse, context_parallel = None, (None, 1, 0)
    # :785-787
    of_out = (None, int(splits == 1)) if is_main and not persistent else (call.out, splits)
    further = (of_out[0], call.q_scale, call.kv_scale, of_out[1], no_lse, *context_parallel)
    grid = (len(call.work_indptr) - 1, 1, 1) if persistent else (-(-rows // sub_q), len(call.qo_indptr) - 1, splits)
    run(file, kernel, grid, _arguments((*pointers, *numbers, call.qo_indptr, metadata, *further)))


def _type(each: torch.Tensor) -> str:
    return "fp8" if each.dtype in FLOAT8.values() else "bf16"


def _prefill_stage(
    run, architecture, q, kv, qo_indptr, kv_indptr, kv_indices, last_page_lens, max_seqlen_q, scale, logits, lse
) -> None:  # fmt: skip
    """mla_prefill_asm_fwd."""
    group, splits = q.shape[1] // kv.shape[2], logits.shape[1]
    pointers = (logits, lse, q, kv, kv_indptr, kv_indices, last_page_lens)
    arguments = _arguments((*pointers, *_numbers(q, kv, scale, group, splits, 1), qo_indptr))
    found = _of_table(table(architecture), _PREFILL_ROWS, "bf16", "bf16", group, queries=0, prefill=True)
    file, kernel, sub_q = found[0] if found else _by_name(_PREFILL_FILES[group], _PREFILL_ROWS)
    run(file, kernel, (-(-max_seqlen_q * group // sub_q), len(qo_indptr) - 1, splits), arguments)


@contextlib.contextmanager
def _called(architecture: str, q, kv_cache, layer: Layer, batch: Batch, out: torch.Tensor, rng: random.Random) -> Iterator[Any]:
    """AITER's module, a function that runs a launch, and the arguments of a call for pages of one slot: q [rows, H, 576], the
    cache, an output of its own, which is copied to `out` at the end, and five more. The most queries of a request are the
    last."""
    if (layer.head_size, layer.v_head_size) != (HEAD_SIZE, VALUE_SIZE):
        raise NotImplementedError(
            f"heads of {layer.head_size} and {layer.v_head_size}: it writes {VALUE_SIZE} whatever out has"
        )
    rows, requests = int(batch.query_start_loc[-1]), batch.num_requests
    schedules = of_architecture.schedules(rng)

    def run(file: str, kernel: str, grid: tuple[int, int, int], arguments: dict[int, Any]) -> None:
        launch = AssemblyLaunch(f"mla/{file}", kernel, grid, arguments, in_step=bool(IN_STEP.search(file)))
        aiter_assembly.run(launch, architecture, schedules)

    indptr, indices = slots_of_requests(batch, batch.seq_lens, kv_cache.shape[1])
    kv, new_out = kv_cache.reshape(-1, 1, 1, layer.head_size), out.new_empty(rows, layer.num_heads, layer.v_head_size)
    most = int(batch.query_start_loc.diff().max())
    common = (batch.query_start_loc[: requests + 1], indptr, indices.int(), torch.ones_like(batch.seq_lens), most)
    yield _module(architecture), run, (q[:rows].contiguous(), kv, new_out, *common)
    rows_of(out, layer, rows)[:] = new_out


def _prefill(architecture: str, q, k, v, kv_cache, layer: Layer, batch: Batch, *, out, lse) -> None:
    with _called(architecture, q, kv_cache, layer, batch, out, rng_of_call(q, batch)) as (module, run, arguments):
        module.aiter.mla_prefill_asm_fwd = functools.partial(_prefill_stage, run, architecture)
        module.mla_prefill_fwd(*arguments, sm_scale=layer.scale)


def _decode(architecture: str, q, k, v, kv_cache, layer: Layer, batch: Batch, *, out, lse, way: Decode) -> None:
    rng = rng_of_call(q, batch)
    with _called(architecture, q, kv_cache, layer, batch, out, rng) as (module, run, (query, *others)):
        options = _splits(architecture, way, others[2:], layer, rng)
        if layer.kv_cache_dtype is not None:
            assert layer.k_scale is not None
            options["kv_scale"] = layer.k_scale.reshape(1)
            if way.narrows_q:
                q_scale = torch.tensor([2.0 ** -_spare_bits(query, layer.kv_cache_dtype)])
                query = (query.float() / q_scale).to(layer.kv_cache_dtype)
                options["q_scale"] = q_scale
        module.aiter.mla_decode_stage1_asm_fwd = functools.partial(_decode_stage, run, architecture, rng)
        module.aiter.mla_reduce_v1 = aiter_mla_metadata.reduce
        module.mla_decode_fwd(query, *others, sm_scale=layer.scale, **options)


def _splits(architecture: str, way: Decode, common: Sequence[Any], layer: Layer, rng: random.Random) -> dict[str, Any]:
    """Arguments that split the keys: by mla_decode_fwd, by a number, or by metadata, whose pointers `_decode_stage` makes."""
    if not way.has_metadata:
        return {"num_kv_splits": rng.choice(SPLITS)}
    qo_indptr, kv_indptr, *_, queries = common
    factor = folds(architecture, *way.types(is_quantized=layer.kv_cache_dtype is not None), layer.num_heads, queries)
    numbers = (layer.num_heads // factor, COMPUTE_UNITS[architecture], rng.choice(PARTS))
    if table(architecture):
        made = aiter_mla_metadata.metadata_of_main(qo_indptr, kv_indptr, *numbers, factor)
    else:
        made = aiter_mla_metadata.metadata(qo_indptr, kv_indptr, *numbers)
    return {"work_meta_data": torch.empty(2, dtype=torch.int64), **made._asdict()}


def _spare_bits(q: torch.Tensor, dtype: torch.dtype) -> int:
    """The power of two by which q can be multiplied and still fit a float8. Engines take a calibrated number, or 1."""
    largest = float(q.float().abs().nan_to_num(0.0, posinf=0.0).max())
    return int(torch.tensor(LARGEST[dtype] / max(largest, 2.0**-100)).log2().floor())


_ENGINE = dataclasses.replace(
    VLLM,
    query_lens=("one", "equal"),
    empty_requests=False,
    planes=(False,),
    fused_qkv=(False,),
)


def _excluded(architecture: str, way: Decode, case: Case) -> str | None:
    types = way.types(is_quantized=case.is_quantized)
    heads, queries = case.group_size, max((each.query_len for each in case.requests), default=1)
    factor = folds(architecture, *types, heads, queries) if way.has_metadata else 1
    if types[0] == "fp8" and queries > MAX_QUERIES_OF_FLOAT8:
        return f"q of float8 and {queries} queries of a request, for which get_meta_param has no entry"
    try:
        choices(architecture, *types, heads // factor, queries, persistent=way.has_metadata)
    except NoKernelError as error:
        return str(error)
    return None


def _group_sizes(architecture: str) -> tuple[int, ...]:
    return (8, 16, 32, 64, 128) if table(architecture) else (16, 128)


def _support(architecture: str, group_sizes: tuple[int, ...], **fields: Any) -> Support:
    return Support(
        attn_types=(AttentionType.DECODER,),
        dtypes=("bfloat16",),
        layouts=(Layout.LATENT,),
        rules=("head_size_v",),
        required_rules=("head_size_v",),
        latent=LatentSizes(widths=((VALUE_SIZE, HEAD_SIZE - VALUE_SIZE),), group_sizes=group_sizes, block_sizes=(1, 16)),
        unused_slots="mostly finite",
        **fields,
    )


def _decode_support(architecture: str, *, way: Decode) -> Support:
    return _support(
        architecture,
        _group_sizes(architecture),
        cache_dtypes=("fp8_e4m3fnuz" if architecture == "gfx942" else "fp8_e4m3fn",),
        scales=("tensor",),
        engine=_ENGINE,
        exclude=functools.partial(_excluded, architecture, way),
        tile_sizes=(16, 64, 128),
        max_tokens=8,
        max_seq_len=300,
    )


def _prefill_support(architecture: str) -> Support:
    return _support(
        architecture,
        tuple(_PREFILL_FILES),
        engine=dataclasses.replace(_ENGINE, query_lens=("any",)),
        tile_sizes=(16, 32, 128),
        max_tokens=24,
        max_seq_len=160,
    )


AITER_MLA_ASSEMBLY = of_architecture.with_architecture(
    "aiter-mla-assembly",
    "AITER's latent decode in assembly, mla_decode_fwd, as vLLM calls it",
    architectures=ARCHITECTURES,
    attention=functools.partial(_decode, way=PLAIN),
    support=functools.partial(_decode_support, way=PLAIN),
    rounding=lambda architecture: Rounding(keys_per_tile=32, dot_is_chained=True, splits=16, float8_dots=True),
    unavailable=functools.partial(unavailable, "mla"),
    findings=(*MLA_ASSEMBLY, *MLA_ASSEMBLY_OF_MAIN),
)
AITER_MLA_PREFILL_ASSEMBLY = of_architecture.with_architecture(
    "aiter-mla-prefill-assembly",
    "AITER's latent prefill in assembly, mla_prefill_fwd, as SGLang calls it",
    architectures=ARCHITECTURES,
    attention=_prefill,
    support=_prefill_support,
    rounding=lambda architecture: Rounding(keys_per_tile=32, dot_is_chained=True),
    unavailable=functools.partial(unavailable, "mla"),
    findings=MLA_PREFILL_ASSEMBLY,
)


_OF_FLOAT8_QUERIES = ("aiter-mla-empty-works", "aiter-mla-unscaled-values")


def _persistent(name: str, way: Decode, q: str) -> Target:
    rounding = Rounding(keys_per_tile=128, dot_is_chained=True, splits=16, float8_dots=way.narrows_q)
    return of_architecture.with_architecture(
        name,
        f"AITER's persistent latent decode in assembly, mla_decode_fwd with metadata, {q}",
        architectures=("gfx942",),
        attention=functools.partial(_decode, way=way),
        support=functools.partial(_decode_support, way=way),
        rounding=lambda architecture: rounding,
        unavailable=functools.partial(unavailable, "mla"),
        findings=tuple(each for each in MLA_PERSISTENT if way.narrows_q or each.name not in _OF_FLOAT8_QUERIES),
    )


AITER_MLA_PERSISTENT = _persistent("aiter-mla-persistent", PERSISTENT, "q of the cache's dtype")
AITER_MLA_PERSISTENT_A16W8 = _persistent("aiter-mla-persistent-a16w8", PERSISTENT_A16W8, "q of bfloat16")
