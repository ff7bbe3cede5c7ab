"""AITER's own Triton unified_attention as a target: the installed package's kernel, called through the adapter.

`ATTN_PARITY_AITER=FOLDER` takes the sources of another release, on a CPU.
"""

import functools
from collections.abc import Iterable
from typing import TYPE_CHECKING, get_args

import torch
from attn_contract import AttentionType, Layout, UnsupportedError
from attn_fuzz import foreign
from attn_fuzz.cases.case import Case, Float8
from attn_fuzz.cases.poison import DTYPES
from attn_fuzz.cases.tensors import Step
from attn_fuzz.extras import triton_unavailable
from attn_fuzz.findings.aiter.unified import SPLIT_KEYS, UNIFIED_ATTENTION
from attn_fuzz.interpreted.aiter import ARCHITECTURE, COMPUTE_UNITS
from attn_fuzz.interpreted.numbers import missing_e4m3fnuz
from attn_fuzz.targets.packages.aiter.package import ops
from attn_fuzz.targets.packages.declaring import SHARES_A_QUERY
from attn_fuzz.targets.support import Support
from attn_fuzz.targets.target import Target
from attn_fuzz.verdict.rounding import Rounding

if TYPE_CHECKING:
    from attn_optimized.aiter_adapter import Aiter

ROWS = (
    Layout.BLOCKS_FIRST_NHD,
    Layout.BLOCKS_FIRST_HND,
    Layout.KV_FIRST_NHD,
    Layout.KV_FIRST_HND,
    Layout.CONTENT_PACKED,
)


def readable_aiter() -> "Aiter":
    """The installed AITER, or the one in the folder that `ATTN_PARITY_AITER` names."""
    from attn_optimized.aiter_adapter import Aiter, find_aiter

    try:
        with foreign.findable("aiter"):
            return find_aiter()
    except foreign.MissingSourcesError as error:
        return Aiter(missing=str(error))


@functools.cache
def usable_aiter(device: str) -> "Aiter":
    """The AITER of `readable_aiter`, interpreted, on a CPU; the installed one on a GPU."""
    from attn_fuzz.interpreted.aiter import interpreted
    from attn_optimized.aiter_adapter import find_aiter

    return interpreted(readable_aiter()) if device == "cpu" else find_aiter()


def _attention(q, k, v, kv_cache, layer, batch, *, out, lse) -> None:
    from attn_optimized import aiter_adapter

    if kv_cache is None:
        raise UnsupportedError("AITER's unified_attention", f"{layer.attn_type} attention", "it reads a KV cache")
    if batch.qq_bias is not None and q.device.type == "cpu":
        reason = "the kernel joins two masks with `and`, which the interpreter takes for their last one alone"
        raise UnsupportedError("AITER's unified_attention", "qq_bias under Triton's interpreter", reason, "a GPU")
    aiter_adapter.unified_attention(usable_aiter(q.device.type), q, kv_cache, layer, batch, out=out, lse=lse, validate=True)


def _float8(device: str) -> tuple[Float8, tuple[Float8, ...]]:
    """The device's own float8 type, and the types of caches to draw: on a CPU all that the AITER takes, on a GPU its own."""
    from attn_optimized.aiter_adapter import is_foreign_cache, native_float8

    aiter = _declared(device)
    name = ARCHITECTURE if device == "cpu" else getattr(torch.cuda.get_device_properties(), "gcnArchName", "")
    architecture = name.partition(":")[0]
    own: Float8 = "fp8_e4m3fn" if native_float8(aiter, architecture) == torch.float8_e4m3fn else "fp8_e4m3fnuz"
    taken = tuple(each for each in get_args(Float8) if not is_foreign_cache(aiter, architecture, DTYPES[each]))
    return own, taken if device == "cpu" else (own,)


def _declared(device: str) -> "Aiter":
    """The AITER of a device; without one, the newest that is recorded."""
    from attn_optimized.aiter_adapter import find_aiter
    from attn_optimized.backends.declaring import declared_aiter

    return declared_aiter(readable_aiter() if device == "cpu" else find_aiter())


def _support(device: str) -> Support:
    own_float8, taken_float8 = _float8(device)
    return Support(
        attn_types=(AttentionType.DECODER,),
        dtypes=("float16", "bfloat16"),
        layouts=ROWS,
        head_sizes=(32, 16, 64, 128),
        block_sizes=(16, 32, 64, 128, 48, 80, 528),
        rules=("window", "logits_soft_cap", "alibi_slopes", "sinks", *(("qq_bias",) if device != "cpu" else ())),
        cache_dtypes=taken_float8,
        scales=("tensor",),
        output_dtypes=(own_float8,),
        unused_slots="mostly finite",
        max_tokens=128,
        exclude=functools.partial(_beyond, device),
    )


def _beyond(device: str, case: Case) -> str | None:
    if case.alibi_slopes and case.sinks:
        return "ALiBi with sinks"
    size = case.cache.block_size if case.cache else 16
    return f"block size {size}" if size.bit_count() > 1 and not _takes_block(device, size) else None


def _takes_block(device: str, size: int) -> bool:
    """True if the AITER of a device takes a block size that is no power of two; without one, whether the newest does."""
    from attn_optimized.aiter_adapter import is_beside_tiles, unified_block_sizes

    aiter = _declared(device)
    return size in unified_block_sizes(aiter) and not is_beside_tiles(aiter, size)


def _events(step: Step) -> Iterable[str]:
    """`split` if there are many keys, and few programs for the device: the keys are split then."""
    from attn_optimized.device import compute_units_of

    layer, batch = step.layer, step.batch
    group = layer.num_heads // layer.num_kv_heads
    rows = max(16, 1 << (group - 1).bit_length())
    programs = layer.num_kv_heads * (batch.num_actual_tokens // (rows // group) + batch.num_requests)
    units = COMPUTE_UNITS if step.q.device.type == "cpu" else compute_units_of(step.q.device)
    is_split = layer.window[0] < 0 and batch.max_seq_len > SPLIT_KEYS and programs <= 4 * units
    return ["split"] if is_split else []


def _rounding(device: str) -> Rounding:
    return Rounding(keys_per_tile=128, dot_is_chained=device != "cpu", splits=128, rounds_dequantized=True)


def _unavailable(device: str) -> str | None:
    if reason := triton_unavailable(device):
        return reason
    if device == "cpu" and (reason := missing_e4m3fnuz()):
        return reason
    if device != "cpu" and torch.version.hip is None:
        return "AITER's kernels are compiled for ROCm GPUs: --device cpu interprets this one"
    from attn_optimized.aiter_adapter import features_of, import_aiter

    return features_of(readable_aiter() if device == "cpu" else import_aiter())["unified"]


AITER_UNIFIED_ATTENTION = Target(
    name="aiter-unified-attention",
    description="the Triton unified_attention of the installed AITER",
    attention=_attention,
    support=_support,
    rounding=_rounding,
    unavailable=_unavailable,
    events=_events,
    repeats=True,
    findings=UNIFIED_ATTENTION,
    modules=ops("unified_attention").load,
    races=SHARES_A_QUERY,
)
