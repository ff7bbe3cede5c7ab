"""AITER's forward attention over rows in assembly, fmha_v3_fwd: prefills without a cache, bfloat16 with V of 128.

Host code of the wheel: `flash_attn_varlen_func` calls it where aiter/ops/mha.py:1903-1916 allow (no window, ALiBi, bias or
dropout), through csrc/py_itfs_cu/asm_mha_varlen_fwd.cu; csrc/py_itfs_cu/asm_mha_fwd.cu is for requests of one length, for which
`flash_attn_func` asks from 129 queries on (mha.py:1223), and other callers of `fmha_v3_fwd` from 1 on. From there
hsa/gfx942/fmha_v3_fwd/codegen.py, CODEGEN below, chooses the file:

    folder      MI300 for 304 compute units, MI308 for 80 or 64 (CODEGEN:117-124)
    causal      a mask to the bottom right without a window (:326-327, :441)
    rounding    how_v3_bf16_cvt: 0 rtne, 1 rtna, 2 rtz (:24-77). Engines leave it at 1
    group       requests of unlike lengths (:325)

gfx950 has one file for all compute units and roundings, and others for K of 192, of which vLLM's ROCM_AITER_MLA makes its
prefills (v1/attention/backends/mla/rocm_aiter_mla.py:2405-2417).

The files without rtne, rtna or rtz in their names are never chosen: no line of :24-77 has them, and AITER's main has them no
more.

`logits_soft_cap` is no rule here: neither mha.py:1903-1916 nor CODEGEN:318-325 asks for it, and the kernel has no argument for
it, so the wheel ignores the cap of `flash_attn_varlen_func`. AITER's main leaves such calls to other kernels.

vLLM 0.33 calls flash_attn_varlen_func for prefills, for the context of extends in chunks, and for encoders of images
(v1/attention/backends/rocm_aiter_fa.py:1154, :1202 and :1354, v1/attention/ops/vit_attn_wrappers.py:70); SGLang 0.5.23 for
prefills with keys of earlier steps as rows (srt/layers/attention/aiter_backend.py:3592, :3621 and :3941). Here keys of a cache
are gathered to rows before the call, and cross-attention stands for chunks of a context.
"""

import functools
import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from attn_contract import AttentionType, Batch, Layer, Layout
from attn_fuzz.cases.tensors import Step
from attn_fuzz.findings.aiter.fmha_assembly import FMHA_ASSEMBLY
from attn_fuzz.targets import of_architecture
from attn_fuzz.targets.engine import GIVES_KEYS, Engine
from attn_fuzz.targets.packages.aiter.assembly import ARCHITECTURES, AssemblyLaunch, attention, unavailable
from attn_fuzz.targets.packages.aiter.dense import gathered
from attn_fuzz.targets.rng import rng_of
from attn_fuzz.targets.support import Support
from attn_fuzz.targets.target import Target
from attn_fuzz.verdict.rounding import Rounding

VALUE_SIZE = 128
QUERIES, KEYS = {128: 256, 192: 128}, {128: 32, 192: 128}
"""The sizes of a tile by K's width (CODEGEN:80-105, and that of gfx950). On gfx950 a tile has 64 keys of 128."""
LEAVES_BARRIERS_OUT = frozenset((192,))
"""K's widths whose files load the next tile into LDS that other waves may still read. Their waves keep in step:
docs/reference/emulator.md."""
FOLDERS = ("MI300", "MI308")
TO_NEAREST, TO_ZERO = ("rtna", "rtne"), ("rtz",)
"""Conversions of float32 to bfloat16: ties away from zero or to even, and truncation."""


def file_of(architecture: str, batch: Batch, head_size: int, *, is_group: bool, conversions: Sequence[str]) -> str:
    """The file below fmha_v3_fwd/ for a call. On gfx942 its lengths choose what AITER's callers and the GPU's size choose."""
    rng = rng_of((batch.query_start_loc, batch.seq_lens, "file"))
    folder, conversion = rng.choice(FOLDERS), rng.choice(conversions)
    is_causal = bool(batch.causal) and batch.max_query_len > 1  # for one query each: asm_mha_varlen_fwd.cu:230
    if architecture == "gfx950":  # hsa/gfx950/fmha_v3_fwd/codegen.py has a file for all compute units and conversions
        widths = "hd128" if head_size == VALUE_SIZE else f"hd{head_size}_hd128"
        return f"fwd_{widths}_bf16{'_causal' * is_causal}{'_group' * is_group}.co"
    return f"{folder}/fwd_hd128_bf16{'_causal' * is_causal}_{conversion}{'_group' * is_group}.co"


def _launch(
    file: str, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, out: torch.Tensor, lse: torch.Tensor | None, scale: float,
    *, max_query_len: int, starts: tuple[torch.Tensor, torch.Tensor] | None = None,
) -> AssemblyLaunch:  # fmt: skip
    """The launch of `fmha_fwd_v3_dispatcher` or, with starts of requests, of `fmha_fwd_v3_group_dispatcher` (CODEGEN:193-316).

    Args:
        q, out: [requests, queries, H, D or VALUE_SIZE], or all rows [T, H, D or VALUE_SIZE] with starts.
        k, v: [requests, keys, HK, D or VALUE_SIZE], or all rows [T_kv, HK, D or VALUE_SIZE] with starts.
        lse: [requests, H, queries] or [H, T] float32.
        starts: of the requests among the rows of q and of k, [requests + 1] int32 each.

    Raises:
        NotImplementedError: V has another width, or the file multiplies a request's first row by the bytes of a row in 32 bits
            (s_mul_i32), which AITER #1957 repairs in later files.
    """
    if v.shape[-1] != VALUE_SIZE:
        raise NotImplementedError(f"V of {v.shape[-1]}: fmha_v3_fwd has no file for it")
    heads, is_causal, tile = q.shape[-2], "causal" in file, QUERIES[q.shape[-1]]
    tiles = -(-max_query_len // tile)
    if is_causal:  # a workgroup takes a tile of the first half and one of the second (:139-142)
        tiles = -(-tiles // 2)
    of_q, of_k, of_v, of_out = map(_strides, (q, k, v, out))
    if starts and max(len(rows) * of[0] for rows, of in ((q, of_q), (k, of_k), (v, of_v), (out, of_out))) > 1 << 32:
        raise NotImplementedError("fmha_v3_fwd on rows of more than 2^32 bytes: its offsets wrap (ROCm/aiter#1957)")
    option = 3 if is_causal and (heads % 8 or max_query_len > 16384) else 5  # :262-266
    q_starts, k_starts = starts or (None, None)
    pointers = (out, q, k, v, lse)
    numbers = (
        *(scale, max_query_len, of_q[0], tile * of_q[0], *of_q[1:], heads // k.shape[-2], *of_k, option),
        *(int(lse is not None), k.shape[-3], q.shape[-1], v.shape[-1], heads, *of_v, *of_out, q_starts, k_starts),
        *(0 if lse is None else lse.stride(-2) * 4, q_starts, k_starts),
    )
    name = file.rpartition("/")[2].removesuffix(".co").replace("fwd_", "fmha_fwd_")
    requests = len(q) if starts is None else len(starts[0]) - 1
    grid = (tiles, heads, requests) if starts is None else (heads, requests, tiles)
    arguments = {16 * i: each for i, each in enumerate((*pointers, *numbers))}
    kernel = f"_ZN5aiter{len(name)}{name}E"
    return AssemblyLaunch(f"fmha_v3_fwd/{file}", kernel, grid, arguments, in_step=q.shape[-1] in LEAVES_BARRIERS_OUT)


def _strides(rows: torch.Tensor) -> tuple[int, int, int]:
    """In bytes: from row to row, from head to head, and from request to request, which is 0 where lengths are unlike."""
    row, head = rows.stride()[-3:-1]
    return 2 * row, 2 * head, 2 * rows.stride(0) if rows.dim() == 4 else 0


def _rows(k, v, kv_cache, layer: Layer, batch: Batch) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The keys and values of all requests as rows, and where each request begins among them."""
    if kv_cache is None:
        rows = int(batch.query_start_loc[-1])
        return k[:rows], v[:rows], batch.query_start_loc
    return gathered(kv_cache, layer, batch, batch.seq_lens)


def _group(architecture, q, k, v, kv_cache, layer, batch, out, lse, *, conversions) -> Iterator[AssemblyLaunch]:
    """The launches of `fmha_v3_varlen_fwd` (asm_mha_varlen_fwd.cu:153-397)."""
    rows = int(batch.query_start_loc[-1])
    if batch.max_seq_len == 0:  # :345 and :390-394, where the LSE is plus infinity
        out[:rows] = 0
        if lse is not None:
            lse[:, :rows] = -math.inf
        return
    k, v, starts = _rows(k, v, kv_cache, layer, batch)
    of_rows = None if lse is None else torch.full((layer.num_heads, rows), math.nan)
    file = file_of(architecture, batch, layer.head_size, is_group=True, conversions=conversions)
    yield _launch(
        file, q[:rows], k, v, out[:rows], of_rows, layer.scale,
        max_query_len=batch.max_query_len, starts=(batch.query_start_loc, starts),
    )  # fmt: skip
    if lse is not None:
        lse[:, :rows] = of_rows


def _batches(architecture, q, k, v, kv_cache, layer, batch, out, lse, *, conversions) -> Iterator[AssemblyLaunch]:
    """The launches of `fmha_v3_fwd` (asm_mha_fwd.cu:142-338), for each run of requests of equal lengths."""
    k, v, starts = _rows(k, v, kv_cache, layer, batch)
    file = file_of(architecture, batch, layer.head_size, is_group=False, conversions=conversions)
    for number, queries, keys, first, first_key in _runs(batch, starts):
        rows = slice(first, first + number * queries)
        if keys == 0:  # :284 and :324-328
            out[rows] = 0
            if lse is not None:
                lse[:, rows] = -math.inf
            continue
        k_rows, v_rows = (each[first_key : first_key + number * keys].unflatten(0, (number, keys)) for each in (k, v))
        q_rows = q[rows].unflatten(0, (number, queries))
        if swapped := queries == 1 and layer.num_heads > layer.num_kv_heads:  # heads of a group become queries (:217-225)
            q_rows = q_rows.reshape(number, layer.num_kv_heads, -1, layer.head_size).transpose(1, 2)
        computed = torch.full((*q_rows.shape[:-1], VALUE_SIZE), math.nan, dtype=q.dtype)
        of_rows = None if lse is None else torch.full((number, q_rows.shape[2], q_rows.shape[1]), math.nan)
        one = file.replace("_causal", "") if queries == 1 else file  # :193
        yield _launch(one, q_rows, k_rows, v_rows, computed, of_rows, layer.scale, max_query_len=q_rows.shape[1])
        if swapped:
            computed = computed.transpose(1, 2)
        out[rows] = computed.reshape(-1, *out.shape[1:])
        if of_rows is not None:
            assert lse is not None
            lse[:, rows] = of_rows.reshape(number, layer.num_heads, queries).transpose(0, 1).flatten(1)


def _runs(batch: Batch, starts: torch.Tensor) -> Iterator[tuple[int, int, int, int, int]]:
    """For each run of requests with equal lengths: their number, queries and keys, and their first rows among both."""
    lengths = zip(*(each.diff().tolist() for each in (batch.query_start_loc, starts)), strict=True)
    begins = zip(batch.query_start_loc.tolist(), starts.tolist(), strict=True)
    for (queries, keys), run in itertools.groupby(zip(lengths, begins, strict=False), key=lambda each: each[0]):
        (_, (first, first_key)), *others = run
        if queries:
            yield 1 + len(others), queries, keys, first, first_key


def _events(architecture: str, step: Step, *, is_group: bool, conversions: Sequence[str]) -> Iterable[str]:
    return [file_of(architecture, step.batch, step.layer.head_size, is_group=is_group, conversions=conversions)]


_ENGINE = Engine(
    scale_signs=(1,),
    empty_batches=False,
    **GIVES_KEYS,
    unlike_strides=(False,),  # it bounds what it reads by the stride of rows, also of a single row, whose stride says nothing
)


def _support(architecture: str, head_size: int) -> Support:
    if head_size == VALUE_SIZE:
        widths: dict[str, Any] = {"layouts": (Layout.KV_FIRST_NHD,), "rules": ("non_causal", "lse"), "head_sizes": (head_size,)}
    else:
        widths = {
            "layouts": (Layout.CONTENT_PACKED,),
            "rules": ("non_causal", "lse", "head_size_v"),
            "required_rules": ("head_size_v",),
            "head_sizes": (head_size, VALUE_SIZE),
            "exclude": lambda case: None if case.head_size == head_size else f"K of {case.head_size}",
        }
    return Support(
        attn_types=(AttentionType.DECODER, AttentionType.ENCODER_DECODER, AttentionType.ENCODER),
        dtypes=("bfloat16",),
        group_sizes=(1, 2, 3, 8),
        block_sizes=(16,),
        engine=_ENGINE,
        tile_sizes=(32, 128, 256),
        max_tokens=280,
        max_seq_len=300,
        **widths,
    )


def _target(name: str, description: str, *, is_group: bool, conversions: Sequence[str], head_size: int = VALUE_SIZE) -> Target:
    launches = functools.partial(_group if is_group else _batches, conversions=conversions)
    cuts = conversions == TO_ZERO
    rounding = Rounding(keys_per_tile=KEYS[head_size], dot_is_chained=True, truncates_weights=cuts, truncates_output=cuts)
    return of_architecture.with_architecture(
        name,
        f"AITER's forward attention in assembly, {description}",
        architectures=("gfx942",) if cuts else ("gfx950",) if head_size != VALUE_SIZE else ARCHITECTURES,
        attention=attention(launches),
        support=functools.partial(_support, head_size=head_size),
        rounding=lambda architecture: rounding,
        unavailable=functools.partial(unavailable, "fmha_v3_fwd"),
        events=functools.partial(_events, is_group=is_group, conversions=conversions),
        findings=FMHA_ASSEMBLY if is_group else FMHA_ASSEMBLY[1:],  # without keys fmha_v3_fwd launches nothing
    )


AITER_FMHA_V3 = _target(
    "aiter-fmha-v3", "fmha_v3_varlen_fwd, as vLLM and SGLang call it for prefills", is_group=True, conversions=TO_NEAREST
)
AITER_FMHA_V3_BATCH = _target(
    "aiter-fmha-v3-batch", "fmha_v3_fwd, for requests of equal lengths", is_group=False, conversions=TO_NEAREST
)
AITER_FMHA_V3_RTZ = _target(
    "aiter-fmha-v3-rtz", "fmha_v3_varlen_fwd with how_v3_bf16_cvt=2", is_group=True, conversions=TO_ZERO
)
AITER_FMHA_V3_BATCH_RTZ = _target(
    "aiter-fmha-v3-batch-rtz", "fmha_v3_fwd with how_v3_bf16_cvt=2", is_group=False, conversions=TO_ZERO
)
AITER_FMHA_V3_192 = _target(
    "aiter-fmha-v3-192",
    "fmha_v3_varlen_fwd with K of 192 and V of 128, as vLLM calls it for prefills of latent attention",
    is_group=True,
    conversions=TO_NEAREST,
    head_size=192,
)
AITER_FMHA_V3_BATCH_192 = _target(
    "aiter-fmha-v3-batch-192",
    "fmha_v3_fwd with K of 192 and V of 128, for requests of equal lengths",
    is_group=False,
    conversions=TO_NEAREST,
    head_size=192,
)
