"""What can be fuzzed. Ours and anybody's are the same thing: a Target behind the entry-point group `attn_parity.targets`.

A package adds one with

    [project.entry-points."attn_parity.targets"]
    my-kernel = "my_package.fuzzing:TARGET"

and then `attn-parity fuzz --target my-kernel`; without one, `--target my_package.fuzzing:TARGET` does the same.
"""

import dataclasses
import importlib.util
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import Literal, Protocol

import torch
from attn_contract import AttentionType, Batch, KVCacheView, Layer, Layout
from attn_fuzz import properties
from attn_fuzz.case import Case, ScaleKind
from attn_fuzz.judge import Rounding
from attn_fuzz.ledger import Finding
from attn_fuzz.properties import Property
from attn_fuzz.tensors import Step

GROUP = "attn_parity.targets"


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
        findings: what it is known to do wrong; see `attn_fuzz.ledger`.
        sanitizes: whether its kernels are Triton's and keep to what `attn_fuzz.permissions` says, access by access.
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
        """Whether `attn_fuzz.sanitizer` can check its kernels there, which it does as they are interpreted."""
        return self.sanitizes and device == "cpu"


class UnknownTargetError(ValueError):
    """No such target, or one that cannot be loaded."""


def names() -> list[str]:
    return sorted({entry.name for entry in entry_points(group=GROUP)})


def load(name: str) -> Target:
    """Load a target by the name of its entry point, or as `module:attribute`.

    Raises:
        UnknownTargetError: there is none of that name, its module does not import, or it is no Target.
    """
    if ":" in name:
        if EntryPoint.pattern.match(name) is None:
            raise UnknownTargetError(f"target: got {name!r}, expected a name or module:attribute")
        entry = EntryPoint(name, name, GROUP)
    else:
        found = [entry for entry in entry_points(group=GROUP) if entry.name == name]
        if not found:
            raise UnknownTargetError(f"target: got {name!r}, expected one of {', '.join(names())}, or module:attribute")
        entry = found[0]
    try:
        target = entry.load()
    except (Exception, SystemExit) as error:
        raise UnknownTargetError(f"target {name}: it does not load: {type(error).__name__}: {error}") from error
    if not isinstance(target, Target):
        raise UnknownTargetError(f"target {name}: it is a {type(target).__name__}, expected an attn_fuzz.targets.Target")
    return target


def usable(name: str, device: str) -> Target:
    """A target that can run on a device type here, its declarations looked at once.

    Raises:
        UnknownTargetError: as `load`; or it says why it cannot run, or what it declares is no declaration.
    """
    target = load(name)
    try:
        reason = target.unavailable(device)
        support, rounding = target.support(device), target.rounding(device)
    except (Exception, SystemExit) as error:
        raise UnknownTargetError(f"target {name}: its declarations raise {type(error).__name__}: {error}") from error
    if reason:
        raise UnknownTargetError(f"target {name}: {reason}")
    if not isinstance(support, Support) or not isinstance(rounding, Rounding):
        raise UnknownTargetError(f"target {name}: it declares {support!r} and {rounding!r}, expected a Support and a Rounding")
    return target


def _triton_attention(q, k, v, kv_cache, layer, batch, *, out, lse) -> None:
    import attn_optimized

    if layer.attn_type.reads_cache:
        attn_optimized.paged_attention(q, kv_cache, layer, batch, out=out, lse=lse, validate=True)
    else:
        attn_optimized.varlen_attention(q, k, v, layer, batch, out=out, lse=lse, validate=True)


def _triton_write(k, v, kv_cache, layer, slot_mapping) -> None:
    import attn_optimized

    attn_optimized.write_kv_cache(k, v, kv_cache, layer, slot_mapping, validate=True)


def _triton_rope(q, k, v, positions, cos_sin_cache, kv_cache, layer, slot_mapping, *, is_neox) -> None:
    import attn_optimized

    attn_optimized.rope_and_write_kv_cache(
        q, k, v, positions, cos_sin_cache, kv_cache, layer, slot_mapping, is_neox=is_neox, validate=True
    )


def _triton_support(device: str) -> Support:
    if device == "cpu":
        return Support(max_tokens=128, max_seq_len=512)
    # every size is compiled, in all combinations with the rest: those of models only
    return Support(max_tokens=1024, max_seq_len=4096, head_sizes=(64, 80, 128), steps_per_layer=32)


def _triton_missing(device: str) -> str | None:
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed: pip install 'attn-parity[cpu]', or a torch build that brings it"
    return None


def _triton_events(step: Step) -> Iterable[str]:
    import attn_optimized

    return ["split"] if attn_optimized.plan_of(step.q, step.layer, step.batch).splits > 1 else []


def _triton_rounding(device: str) -> Rounding:
    interpreted = device == "cpu"
    return Rounding(keys_per_tile=64, dot_is_chained=not interpreted, splits=8 if interpreted else 64, exact_division=True)


TRITON = Target(
    name="triton",
    description="the shipping Triton kernels: paged and varlen attention, cache write",
    attention=_triton_attention,
    write_kv_cache=_triton_write,
    rope_and_write_kv_cache=_triton_rope,
    support=_triton_support,
    rounding=_triton_rounding,
    unavailable=_triton_missing,
    events=_triton_events,
    sanitizes=True,
)


def _cascade_attention(q, k, v, kv_cache, layer, batch, *, out, lse) -> None:
    import attn_optimized

    prefix = _common_prefix(batch, layer, kv_cache)
    attn_optimized.cascade_attention(q, kv_cache, layer, batch, prefix, out=out, lse=lse, validate=True)


def _common_prefix(batch: Batch, layer: Layer, kv_cache: torch.Tensor | None) -> int:
    """How many leading keys all requests with a query share with the first request, in whole blocks of their contexts."""
    if layer.layout is None or kv_cache is None or batch.block_table is None:
        return 0
    view = KVCacheView.of(kv_cache, layer.layout, num_kv_heads=layer.num_kv_heads, head_size=layer.head_size)
    query_lens = batch.query_start_loc.diff()
    contexts = (batch.seq_lens - query_lens)[query_lens > 0].tolist()
    if not contexts or int(batch.seq_lens[0]) < view.block_size:
        return 0
    blocks = max(0, min(*contexts, int(batch.seq_lens[0]))) // view.block_size
    table = batch.block_table[query_lens > 0, :blocks]
    same = (table == batch.block_table[:1, :blocks]).all(0).long().cumprod(0)
    return int(same.sum()) * view.block_size


def _cascade_events(step: Step) -> Iterable[str]:
    return ["cascade"] if _common_prefix(step.batch, step.layer, step.kv_cache) else []


TRITON_CASCADE = Target(
    name="triton-cascade",
    description="cascade attention of the Triton kernels, where requests share their first blocks",
    attention=_cascade_attention,
    support=lambda device: dataclasses.replace(
        _triton_support(device),
        attn_types=(AttentionType.DECODER,),
        window=False,
        chunked_local=False,
        alibi=False,
        ranges=False,
    ),
    rounding=_triton_rounding,
    unavailable=_triton_missing,
    events=_cascade_events,
    sanitizes=True,
)


def _invariant_attention(q, k, v, kv_cache, layer, batch, *, out, lse) -> None:
    import attn_optimized

    options = {"out": out, "lse": lse, "batch_invariant": True, "validate": True}
    if layer.attn_type.reads_cache:
        attn_optimized.paged_attention(q, kv_cache, layer, batch, **options)
    else:
        attn_optimized.varlen_attention(q, k, v, layer, batch, **options)


def _queries_per_tile(step: Step) -> int:
    import attn_optimized

    return attn_optimized.plan_of(step.q, step.layer, step.batch, batch_invariant=True).tiles.queries


TRITON_INVARIANT = Target(
    name="triton-invariant",
    description="the Triton kernels in batch-invariant mode: each request also alone, and in steps of whole tiles, bit by bit",
    attention=_invariant_attention,
    support=_triton_support,
    rounding=_triton_rounding,
    unavailable=_triton_missing,
    properties=(properties.batch_composition(), properties.chunked_prefill(_queries_per_tile)),
    sanitizes=True,
)


def _properties_support(device: str) -> Support:
    if device == "cpu":
        return _triton_support(device)
    return dataclasses.replace(
        _triton_support(device),
        max_tokens=8192,
        max_seq_len=65536,
        tile_sizes=(64, 16, 256, 2048),
        block_sizes=(16, 32, 48, 544),
    )


def _queries_per_chunk(step: Step) -> int:
    """More than half a tile, so that chunks end inside."""
    import attn_optimized

    return attn_optimized.plan_of(step.q, step.layer, step.batch).tiles.queries // 2 + 1


_ERROR = properties.error_bound(_triton_rounding)

TRITON_PROPERTIES = Target(
    name="triton-properties",
    description="the shipping Triton kernels without an oracle, at sizes at which the reference is too slow: their properties",
    attention=_triton_attention,
    write_kv_cache=_triton_write,
    rope_and_write_kv_cache=_triton_rope,
    support=_properties_support,
    rounding=_triton_rounding,
    unavailable=_triton_missing,
    events=_triton_events,
    oracle=False,
    # how keys are split depends on the batch's sizes alone, so bits may differ only where these do; or where the interpreter's
    # matrix products do, which sum the last columns in another order
    properties=(
        properties.repetition(),
        properties.request_order(),
        properties.batch_composition(_ERROR),
        properties.chunked_prefill(_queries_per_chunk, _ERROR),
        properties.padded_batch(_ERROR),
        properties.block_permutation(),
        properties.garbage(),
        properties.head_permutation(),
        properties.channel_permutation(_ERROR),
        properties.doubled_values(),
        properties.additivity(_ERROR),
        properties.weights(_ERROR),
        properties.shifted_keys(_ERROR),
        properties.scale_in_query(),
        properties.wide_window(),
        properties.last_row(),
        properties.forgotten_keys(_ERROR),
        properties.split_keys(_ERROR),
    ),
    sanitizes=True,
)


def _varlen_attention(q, k, v, kv_cache, layer, batch, *, out, lse) -> None:
    import attn_optimized

    attn_optimized.varlen_attention(q, k, v, layer, batch, out=out, lse=lse, validate=True)


TRITON_VARLEN = Target(
    name="triton-varlen",
    description="the dense Triton kernel alone, which must refuse what needs a cache",
    attention=_varlen_attention,
    support=lambda device: dataclasses.replace(
        _triton_support(device), attn_types=(AttentionType.ENCODER, AttentionType.ENCODER_ONLY)
    ),
    rounding=_triton_rounding,
    unavailable=_triton_missing,
    sanitizes=True,
)


def _reference_attention(q, k, v, kv_cache, layer, batch, *, out, lse) -> None:
    import attn_reference

    if layer.attn_type.reads_cache:
        attn_reference.paged_attention(q, kv_cache, layer, batch, out=out, lse=lse)
    else:
        attn_reference.varlen_attention(q, k, v, layer, batch, out=out, lse=lse)


def _reference_write(k, v, kv_cache, layer, slot_mapping) -> None:
    import attn_reference

    attn_reference.write_kv_cache(k, v, kv_cache, layer, slot_mapping)


def _reference_rope(q, k, v, positions, cos_sin_cache, kv_cache, layer, slot_mapping, *, is_neox) -> None:
    import attn_reference

    attn_reference.rope_and_write_kv_cache(q, k, v, positions, cos_sin_cache, kv_cache, layer, slot_mapping, is_neox=is_neox)


REFERENCE_FP32 = Target(
    name="reference-fp32",
    description="the reference in float32, judged by itself in float64: a check of the bound",
    attention=_reference_attention,
    write_kv_cache=_reference_write,
    rope_and_write_kv_cache=_reference_rope,
    rounding=lambda device: Rounding(keys_per_tile=1024),
)
