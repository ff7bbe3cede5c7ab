"""AITER's own Triton unified_attention as a target: the installed package's kernel, called through the adapter."""

import functools
import importlib.util
from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch
from attn_contract import AttentionConfig, AttentionType, Layout, UnsupportedError
from attn_fuzz.cases.case import Case
from attn_fuzz.cases.tensors import Step
from attn_fuzz.interpreted.aiter import ARCHITECTURE, COMPUTE_UNITS
from attn_fuzz.targets.finding import Finding
from attn_fuzz.targets.target import Support, Target
from attn_fuzz.verdict.judge import Rounding
from attn_fuzz.verdict.verdict import Verdict

if TYPE_CHECKING:
    from attn_optimized.aiter_adapter import Aiter

KERNELS = "aiter/ops/triton/_triton_kernels/unified_attention.py"
INTERPRETS_E4M3FNUZ = (3, 9)
"""The first Triton whose interpreter is known to have gfx942's float8; 3.6's has not."""
SEEN_IN = "amd-aiter 0.1.7.post2.dev18"
SPLIT_KEYS = 512
"""Up to so many keys, a sequence's are never split."""
ROWS = (
    Layout.BLOCKS_FIRST_NHD,
    Layout.BLOCKS_FIRST_HND,
    Layout.KV_FIRST_NHD,
    Layout.KV_FIRST_HND,
    Layout.CONTENT_PACKED,
)


@functools.cache
def usable_aiter(device: str) -> "Aiter":
    """The installed AITER, whose unified_attention is interpreted on a CPU."""
    from attn_fuzz.interpreted.aiter import interpreted
    from attn_optimized.aiter_adapter import find_aiter

    return interpreted(find_aiter()) if device == "cpu" else find_aiter()


def _attention(q, k, v, kv_cache, layer, batch, *, out, lse) -> None:
    from attn_optimized import aiter_adapter

    if kv_cache is None:
        raise UnsupportedError("AITER's unified_attention", f"{layer.attn_type} attention", "it reads a KV cache")
    if batch.qq_bias is not None and q.device.type == "cpu":
        reason = "the kernel joins two masks with `and`, which the interpreter takes for their last one alone"
        raise UnsupportedError("AITER's unified_attention", "qq_bias under Triton's interpreter", reason, "a GPU")
    aiter_adapter.unified_attention(usable_aiter(q.device.type), q, kv_cache, layer, batch, out=out, lse=lse, validate=True)


def _native_float8(device: str) -> str:
    """The kernel's own, as the adapter has it."""
    architecture = ARCHITECTURE if device == "cpu" else getattr(torch.cuda.get_device_properties(), "gcnArchName", "")
    return "fp8_e4m3fn" if architecture.startswith("gfx950") else "fp8_e4m3fnuz"


def _support(device: str) -> Support:
    return Support(
        attn_types=(AttentionType.DECODER,),
        dtypes=("float16", "bfloat16"),
        layouts=ROWS,
        head_sizes=(32, 16, 64, 128),
        block_sizes=(16, 32, 64, 128),
        rules=("window", "logits_soft_cap", "alibi_slopes", "sinks", *(("qq_bias",) if device != "cpu" else ())),
        cache_dtypes=("fp8_e4m3fn", "fp8_e4m3fnuz") if device == "cpu" else (_native_float8(device),),
        scales=("tensor",),
        output_dtypes=(_native_float8(device),),
        unused_slots="mostly finite",
        max_tokens=128,
        max_seq_len=1024,
        exclude=_beyond,
    )


def _beyond(case: Case) -> str | None:
    return "ALiBi with sinks" if case.alibi_slopes and case.sinks else None


def _events(step: Step) -> Iterable[str]:
    """Whether the keys are split: they are many, and the programs are few for the device."""
    from attn_optimized.device import compute_units_of

    layer, batch = step.layer, step.batch
    group = layer.num_heads // layer.num_kv_heads
    programs = layer.num_kv_heads * (batch.num_actual_tokens // (16 // group) + batch.num_requests)
    units = COMPUTE_UNITS if step.q.device.type == "cpu" else compute_units_of(step.q.device)
    is_split = layer.window[0] < 0 and batch.max_seq_len > SPLIT_KEYS and programs <= 4 * units
    return ["split"] if is_split else []


def _rounding(device: str) -> Rounding:
    return Rounding(keys_per_tile=128, dot_is_chained=device != "cpu", splits=128, rounds_dequantized=True)


def _missing(device: str) -> str | None:
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed: pip install 'attn-parity[cpu]', or a torch build that brings it"
    import triton

    release = triton.__version__
    if device == "cpu" and tuple(int(part) for part in release.split(".")[:2]) < INTERPRETS_E4M3FNUZ:
        return f"the interpreter of triton {release} has not the kernel's own float8_e4m3fnuz: pip install 'triton>=3.9'"
    if device != "cpu" and torch.version.hip is None:
        return "AITER's kernels are compiled for ROCm GPUs: --device cpu interprets this one"
    from attn_optimized.aiter_adapter import features_of, find_aiter, import_aiter

    return features_of(find_aiter() if device == "cpu" else import_aiter()).unified


def _may_split(case: Case) -> bool:
    """Whether a device with many compute units splits a case's keys into segments."""
    return case.window[0] < 0 and max((request.seq_len for request in case.requests), default=0) + case.slack > SPLIT_KEYS


def _hides_tiles(case: Case) -> bool:
    """Whether a row may see nothing of a tile that its neighbours in the tile of queries do, and something of another."""
    is_windowed = case.window[0] >= 0 and case.sinks in (None, "off")
    return (is_windowed or _may_split(case)) and any(request.query_len > 1 for request in case.requests)


def _has_no_keys(case: Case) -> bool:
    return any(request.query_len > request.seq_len == 0 for request in case.requests)


def _is_nan(case: Case, verdict: Verdict) -> bool:
    """An output that is NaN, or was: float8 is clamped, and that makes a number of it."""
    return verdict.kind == "nan" or (verdict.kind == "value" and case.output_dtype is not None)


def _is_decoder(config: AttentionConfig) -> bool:
    return config.attn_type is AttentionType.DECODER


def _has_window(config: AttentionConfig) -> bool:
    return config.value_of("window")[0] >= 0


FINDINGS = (
    Finding(
        name="aiter-unused-slots",
        what="NaN in a slot that no query sees, past the end of a sequence or outside its window, makes the output NaN.",
        cause=f"{KERNELS}, kernel_unified_attention_2d and _3d: where a tile is a block, K and V are loaded without a mask, "
        "and nowhere is V masked by what a query sees; its weight is 0, and 0 * NaN is NaN.",
        seen_in=SEEN_IN,
        link=None,
        meets=_is_decoder,
        explains=lambda case, verdict: _is_nan(case, verdict) and not case.finite_slots,
    ),
    Finding(
        name="aiter-rows-without-keys",
        what="In a request with more query tokens than keys, rows that see no key are NaN where the kernel visits a tile for "
        "their neighbours. They should be 0.",
        cause=f"{KERNELS}, kernel_unified_attention_2d and _3d: a tile without a visible key leaves the denominator at 0, and "
        "the epilogue of the first divides by it.",
        seen_in=SEEN_IN,
        link=None,
        meets=_is_decoder,
        explains=lambda case, verdict: _is_nan(case, verdict) and any(0 < r.seq_len < r.query_len for r in case.requests),
    ),
    Finding(
        name="aiter-hidden-tile",
        what="Where a row sees nothing of a tile, as a window or a split makes them, and its logits are negative, its weights "
        "underflow: in float16 below about -9, and to a row of NaN below about -103. Without a split, a sink prevents it.",
        cause=f"{KERNELS}, kernel_unified_attention_2d and _3d: after a tile without a visible key the running maximum is 0 "
        "instead of minus infinity, and never falls below that.",
        seen_in=SEEN_IN,
        link=None,
        meets=lambda config: _is_decoder(config) and not (_has_window(config) and config.asks("sinks")),
        explains=lambda case, verdict: verdict.kind in ("nan", "value") and _hides_tiles(case),
    ),
    Finding(
        name="aiter-soft-cap-overflow",
        what="A logit of more than about 88 times the soft cap, in either direction, makes the output NaN.",
        cause=f"{KERNELS}, apply_softcap: tanh by exp2(x) and exp2(-x), one of which overflows; infinity over itself is NaN.",
        seen_in=SEEN_IN,
        link="vllm-project/vllm#56578 (the same lines in vLLM)",
        meets=lambda config: _is_decoder(config) and config.asks("logits_soft_cap"),
        explains=lambda case, verdict: _is_nan(case, verdict) and case.logits_soft_cap is not None,
    ),
    Finding(
        name="aiter-split-writes-unowned-rows",
        what="Where keys are split, rows of the output that no request owns are written, as padding for a graph has them.",
        cause=f"{KERNELS}, reduce_segments: one program for each row of q, and none asks whether a request owns it.",
        seen_in=SEEN_IN,
        link=None,
        meets=lambda config: _is_decoder(config) and not _has_window(config),
        explains=lambda case, verdict: verdict.kind == "guard" and case.unowned_rows > 0 and _may_split(case),
    ),
    Finding(
        name="aiter-split-without-keys",
        what="Where keys are split, a request with query tokens and no keys gets NaN (interpreted; on a GPU an integer "
        "division by 0 is undefined). It should get 0.",
        cause=f"{KERNELS}, reduce_segments: it divides by tiles_per_segment, which is 0.",
        seen_in=SEEN_IN,
        link=None,
        meets=lambda config: _is_decoder(config) and not _has_window(config),
        explains=lambda case, verdict: _is_nan(case, verdict) and _may_split(case) and _has_no_keys(case),
    ),
)


AITER_UNIFIED_ATTENTION = Target(
    name="aiter-unified-attention",
    description="the Triton unified_attention of the installed AITER",
    attention=_attention,
    support=_support,
    rounding=_rounding,
    unavailable=_missing,
    events=_events,
    findings=FINDINGS,
)
