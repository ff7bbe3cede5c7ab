"""What a target is: functions that attend, and what they declare of themselves."""

import dataclasses
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from attn_contract import AttentionType, Batch, Layer, Layout
from attn_fuzz.cases.case import Case, ScaleKind
from attn_fuzz.cases.tensors import Step
from attn_fuzz.properties import Property
from attn_fuzz.targets.finding import Finding
from attn_fuzz.verdict.judge import Rounding


class AttentionFunction(Protocol):
    def __call__(
        self,
        q: torch.Tensor,
        k: torch.Tensor | None,
        v: torch.Tensor | None,
        kv_cache: torch.Tensor | None,
        layer: Layer,
        batch: Batch,
        *,
        out: torch.Tensor,
        lse: torch.Tensor | None,
    ) -> object:
        """Write every row of `out` (and `lse`) that a request owns, and nothing else.

        `kv_cache` already holds this step's keys and values where the layer has a cache; k and v are this step's, or None
        when the step writes nothing.
        """
        ...


class WriteFunction(Protocol):
    def __call__(
        self, k: torch.Tensor, v: torch.Tensor, kv_cache: torch.Tensor, layer: Layer, slot_mapping: torch.Tensor
    ) -> object:
        """Write row s of k and v to slot `slot_mapping[s]`, bit by bit or quantized as the layer says, and nothing else."""
        ...


class RopeFunction(Protocol):
    def __call__(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        positions: torch.Tensor,
        cos_sin_cache: torch.Tensor,
        kv_cache: torch.Tensor,
        layer: Layer,
        slot_mapping: torch.Tensor,
        *,
        is_neox: bool,
    ) -> object:
        """Rotate the first rows of q in place, write rotated k and v as WriteFunction does, and nothing else."""
        ...


def _nothing(case: Case) -> str | None:
    return None


@dataclass(frozen=True, kw_only=True)
class Support:
    """What a target can do. It is right about all of that, and refuses the rest: with a ValueError or a NotImplementedError
    before it writes anything. Sizes and dtypes are only what is drawn.

    Args:
        exclude: says of a case, in words, why the target does not support it; for what no field can say, such as windows that
            are open to the right, K and V planes (`case.cache.planes`) or a fused qkv tensor.
        causal, non_causal, per_request_causal: for DECODER.
        soft_cap, alibi, sink_tokens, chunked_local, ranges, qq_bias, rope: whether it has the rule.
        cache_dtypes, scales: of quantized caches; rows with inline scales are of layout CONTENT_PACKED_SCALED instead.
        output_dtypes: of `out` where there is an output_scale.
        unused_slots: what slots that no query sees hold: NaN; or in 3 of 4 cases a finite number, for a kernel that is known to
            read them and to give them a weight of 0: 0 * NaN is NaN.
        tile_sizes: sizes at whose multiples the kernel changes its ways; lengths are drawn around them.
        max_tokens, max_seq_len: keep an example affordable.
        steps_per_layer: how many cases in a row share a layer, where a kernel is compiled for each layer and that takes longer
            than many cases do.
    """

    attn_types: tuple[AttentionType, ...] = tuple(AttentionType)
    dtypes: tuple[str, ...] = ("float32", "float16", "bfloat16")
    layouts: tuple[Layout, ...] = tuple(Layout)
    head_sizes: tuple[int, ...] = (32, 16, 64, 80, 96, 128)
    group_sizes: tuple[int, ...] = (1, 2, 3, 4, 5, 7, 8)
    block_sizes: tuple[int, ...] = (16, 1, 4, 8, 32, 48, 80, 544)
    causal: bool = True
    non_causal: bool = True
    per_request_causal: bool = True
    window: bool = True
    sink_tokens: bool = True
    chunked_local: bool = True
    ranges: bool = True
    soft_cap: bool = True
    alibi: bool = True
    qq_bias: bool = True
    sinks: bool = True
    cache_dtypes: tuple[str, ...] = ("fp8_e4m3fn", "fp8_e4m3fnuz", "int8")
    scales: tuple[ScaleKind, ...] = ("tensor", "head", "token")
    output_dtypes: tuple[str, ...] = ("fp8_e4m3fn", "fp8_e4m3fnuz")
    rope: bool = True
    lse: bool = True
    unused_slots: Literal["NaN", "mostly finite"] = "NaN"
    tile_sizes: tuple[int, ...] = (16, 32, 64)
    max_tokens: int = 256
    max_seq_len: int = 1024
    steps_per_layer: int = 1
    exclude: Callable[[Case], str | None] = _nothing

    def __post_init__(self) -> None:
        for name in ("attn_types", "dtypes", "layouts", "head_sizes", "group_sizes", "block_sizes", "scales", "tile_sizes"):
            if not getattr(self, name):
                raise ValueError(f"Support.{name}: got none, expected at least one")
        if AttentionType.DECODER in self.attn_types and not (self.causal or self.non_causal):
            raise ValueError("Support: got DECODER without causal and without non_causal, expected one of them")

    def limit(self, case: Case) -> str | None:
        """Why a case cannot be run, in words: a dtype or a size that is not drawn. None if it can."""
        choices = {
            "dtype": (case.dtype, self.dtypes),
            "head_size": (case.head_size, self.head_sizes),
            "group_size": (case.group_size, self.group_sizes),
        }
        if case.cache is not None:
            choices["block_size"] = (case.cache.block_size, self.block_sizes)
            choices["layout"] = (case.cache.layout, self.layouts)
        for name, (value, allowed) in choices.items():
            if value not in allowed:
                return f"{name} {value}, only {', '.join(map(str, allowed))}"
        return None

    def beyond(self, case: Case) -> str | None:
        """The first property of a case that the target does not support and must refuse, in words; None if there is none."""
        decoder = case.attn_type is AttentionType.DECODER
        flags = {request.causal for request in case.requests} if decoder else set()
        cache_dtype, scales = (case.cache.dtype, case.cache.scales) if case.cache else (None, None)
        properties = {
            f"{case.attn_type} attention": case.attn_type not in self.attn_types,
            "causal attention": True in flags and not self.causal,
            "non-causal decoder attention": False in flags and not self.non_causal,
            "one causal flag per request": case.per_request_causal and not self.per_request_causal,
            "a window": case.window != (-1, -1) and not self.window,
            "sink_tokens": case.sink_tokens and not self.sink_tokens,
            "chunked_local": case.chunked_local and not self.chunked_local,
            "bidirectional ranges": (case.has_ranges or case.ranges_clamped) and not self.ranges,
            "a soft cap": case.soft_cap and not self.soft_cap,
            "ALiBi": case.alibi and not self.alibi,
            "qq_bias": case.qq_bias and not self.qq_bias,
            "sinks": case.sinks and not self.sinks,
            f"a cache of {cache_dtype}": cache_dtype and cache_dtype not in self.cache_dtypes,
            f"a scale of the cache for each {scales}": scales and scales not in self.scales,
            f"an output of {case.output_dtype}": case.output_dtype and case.output_dtype not in self.output_dtypes,
            "RoPE in the cache write": case.rope and not self.rope,
            "the LSE": case.return_lse and not self.lse,
        }
        return next((name for name, is_beyond in properties.items() if is_beyond), None) or self.exclude(case)

    def widened(self) -> "Support":
        """The same sizes with every property: what the strategies draw refusals from."""
        return dataclasses.replace(Support(), **{name: getattr(self, name) for name in _DRAWN})


_DRAWN = (
    "unused_slots",
    "dtypes",
    "layouts",
    "head_sizes",
    "group_sizes",
    "block_sizes",
    "tile_sizes",
    "max_tokens",
    "max_seq_len",
    "steps_per_layer",
)


def _no_events(step: Step) -> Iterable[str]:
    return ()


@dataclass(frozen=True, kw_only=True)
class Target:
    """Something that attends.

    Args:
        name: as in the entry point.
        description: one line.
        attention: see AttentionFunction.
        write_kv_cache, rope_and_write_kv_cache: see WriteFunction and RopeFunction; None: the reference writes the cache, and
            only the rest is checked.
        support: what it can do on a device type, "cpu" or "cuda".
        refuses: whether it promises to refuse what is beyond its support; if not, none of that is drawn.
        rounding: where it rounds on a device type.
        unavailable: None if it can run on a device type here, else why not, in words.
        events: names of the paths that it takes for a step, such as "split"; a run counts them.
        properties: what its outputs promise of each other, beyond being right; see `attn_fuzz.properties`. A case asks two of
            those that apply to it.
        oracle: whether the reference judges its outputs too. If not, memory and properties alone do, and sizes may be such that
            the reference would take too long.
        findings: what it is known to do wrong; see `attn_fuzz.targets.finding`.
        sanitizes: whether its kernels are Triton's and keep to what `attn_fuzz.interpreted.permissions` says, access by access.
    """

    name: str
    description: str
    attention: AttentionFunction
    write_kv_cache: WriteFunction | None = None
    rope_and_write_kv_cache: RopeFunction | None = None
    support: Callable[[str], Support] = lambda device: Support()
    rounding: Callable[[str], Rounding]
    refuses: bool = True
    unavailable: Callable[[str], str | None] = lambda device: None
    events: Callable[[Step], Iterable[str]] = _no_events
    properties: tuple[Property, ...] = ()
    oracle: bool = True
    findings: tuple[Finding, ...] = ()
    sanitizes: bool = False

    def __post_init__(self) -> None:
        for name in ("attention", "support", "rounding", "unavailable", "events"):
            if not callable(getattr(self, name)):
                raise TypeError(f"Target.{name}: got {getattr(self, name)!r}, expected a function")

    def can_be_sanitized(self, device: str) -> bool:
        """Whether `attn_fuzz.interpreted.sanitizer` can check its kernels there, which it does as they are interpreted."""
        return self.sanitizes and device == "cpu"
