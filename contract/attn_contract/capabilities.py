"""What a backend can do, declared once: the selector, a backend's constructor and the table in the docs all ask this.

A property is YES, or No with the reason; a set of values is Only, Multiples or ANY. `Capabilities.refusals` gives every reason
at once, since an engineer who repairs one wants to know of the others.
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, get_args

import torch

from attn_contract.arguments import check_int, check_type, shown
from attn_contract.errors import ContractError, UnsupportedError
from attn_contract.layer import FLOAT8_DTYPES, FLOAT_DTYPES, QUANTIZED_DTYPES, UNLIMITED, AttentionType, Layer, soft_cap
from attn_contract.layouts import Layout

Scales = Literal["tensor", "head", "token", "inline"]
"""Of a quantized cache: `k_scale` and `v_scale` for all heads or one per head; one per token and head in `k_scale_cache`; the
same in the cache's rows."""


class No(str):
    """A property that is not supported, and why not."""

    __slots__ = ()

    def __bool__(self) -> bool:
        return False


YES: Final = True
Answer = Literal[True] | No


@dataclass(frozen=True)
class Only:
    """These values and no other; `why` says what forbids the rest."""

    values: tuple[Any, ...]
    why: str

    def __contains__(self, value: object) -> bool:
        return value in self.values

    def __str__(self) -> str:
        return ", ".join(named(value) for value in self.values) or "none"


@dataclass(frozen=True)
class Multiples:
    """Multiples of a number up to a largest one (None: any); `why` says what forbids the rest."""

    of: int
    why: str
    at_most: int | None = None

    def __contains__(self, value: object) -> bool:
        return isinstance(value, int) and value % self.of == 0 and (self.at_most is None or value <= self.at_most)

    def __str__(self) -> str:
        if self.of == 1:
            return "any" if self.at_most is None else f"up to {self.at_most}"
        return f"multiples of {self.of}" + ("" if self.at_most is None else f" up to {self.at_most}")


class _Any:
    why = ""

    def __contains__(self, value: object) -> bool:
        return True

    def __str__(self) -> str:
        return "any"


ANY: Final = _Any()
Values = Only | Multiples | _Any


@dataclass(frozen=True, kw_only=True)
class AttentionConfig:
    """What a model and an engine ask of one layer, known before there is a tensor: what a backend is selected by.

    Args:
        num_heads, num_kv_heads, head_size, attn_type: as in Layer.
        dtype: of q, k and v.
        block_size: slots of a block; None exactly for the types that have no cache.
        layout: how the cache is laid out, where the engine has decided that; None leaves it to the backend.
        kv_cache_dtype: of a quantized cache, with its kind of `scales`; None: the cache is of `dtype`.
        window, sink_tokens, chunked_local, logits_soft_cap: as in Layer.
        alibi, sinks, ranges, ranges_clamped, qq_bias: whether the layer or its batches have that.
        non_causal: whether a DECODER may see steps with causal=False (DFlash drafts).
        per_request_causal: whether one step may hold both kinds of requests.
        lse: whether the caller wants the LSE.
        output_dtype: a float8 type of `out`, with an output scale.
        batch_invariant: whether outputs must not depend on the rest of the batch.
        rope: whether the cache write is to rotate too: of a DECODER that writes.
        kv_sharing: whether the layer reads what another one wrote (`kv_sharing_target_layer_name`), and writes nothing.

    Raises:
        ContractError: a field has another type, is out of range or contradicts another one.
    """

    num_heads: int
    num_kv_heads: int
    head_size: int
    dtype: torch.dtype
    attn_type: AttentionType = AttentionType.DECODER
    block_size: int | None = None
    layout: Layout | None = None
    kv_cache_dtype: torch.dtype | None = None
    scales: Scales | None = None
    window: tuple[int, int] = (UNLIMITED, UNLIMITED)
    sink_tokens: int = 0
    chunked_local: int | None = None
    logits_soft_cap: float | None = None
    alibi: bool = False
    sinks: bool = False
    ranges: bool = False
    ranges_clamped: bool = False
    qq_bias: bool = False
    non_causal: bool = False
    per_request_causal: bool = False
    lse: bool = False
    output_dtype: torch.dtype | None = None
    batch_invariant: bool = False
    rope: bool = False
    kv_sharing: bool = False

    def __post_init__(self) -> None:
        for name in ("num_heads", "num_kv_heads", "head_size"):
            check_int(name, getattr(self, name), minimum=1)
        if self.num_heads % self.num_kv_heads:
            raise ContractError("num_heads", self.num_heads, f"a multiple of num_kv_heads ({self.num_kv_heads})")
        check_type("attn_type", self.attn_type, AttentionType, f"an AttentionType: {', '.join(AttentionType)}")
        for name in _FLAGS:
            check_type(name, getattr(self, name), bool, "a bool")
        if self.layout is not None:
            check_type("layout", self.layout, Layout, f"None or a Layout: {', '.join(Layout)}")
        _check_one_of("dtype", self.dtype, FLOAT_DTYPES)
        _check_one_of("kv_cache_dtype", self.kv_cache_dtype, (None, *QUANTIZED_DTYPES))
        _check_one_of("output_dtype", self.output_dtype, (None, *FLOAT8_DTYPES))
        _check_one_of("scales", self.scales, (None, *get_args(Scales)))
        if (self.kv_cache_dtype is None) != (self.scales is None):
            expected = f"one of {', '.join(get_args(Scales))} with a kv_cache_dtype, and None without"
            raise ContractError("scales", self.scales, expected)
        if self.kv_cache_dtype == torch.int8 and self.scales in ("tensor", "head"):
            raise ContractError("scales", self.scales, "token or inline: int8 has one scale per token")
        if self.attn_type.reads_cache or self.block_size is not None:
            check_int("block_size", self.block_size, minimum=1)
        if not self.attn_type.reads_cache:
            self._check_off(_OF_A_CACHE, f"{self.attn_type} has no KV cache")
        if self.attn_type is not AttentionType.DECODER:
            self._check_off(_OF_CAUSALITY, f"{self.attn_type} is never causal, only DECODER has the choice")
        if self.scales == "inline" and self.head_size % 4:
            raise ContractError("head_size", self.head_size, "a multiple of 4: inline scales are float32 in rows of bytes")
        if self.layout is not None and self.layout.has_inline_scales != (self.scales == "inline"):
            raise ContractError(
                "layout", self.layout, f"one for scales {self.scales}: only CONTENT_PACKED_SCALED holds its own"
            )
        if self.per_request_causal and not self.non_causal:
            raise ContractError("per_request_causal", True, "non_causal=True with it: some of the requests are")
        self._check_rules()

    def _check_rules(self) -> None:
        """The rules that Layer and Batch check, where they are known already."""
        check_type("window", self.window, tuple, "a tuple (left, right)")
        if len(self.window) != 2:
            raise ContractError("window", self.window, "a tuple (left, right)")
        for side, distance in enumerate(self.window):
            check_int(f"window[{side}]", distance, minimum=UNLIMITED)
        check_int("sink_tokens", self.sink_tokens, minimum=0)
        if self.chunked_local is not None:
            check_int("chunked_local", self.chunked_local, minimum=1)
        object.__setattr__(self, "logits_soft_cap", soft_cap(self.logits_soft_cap))
        if self.attn_type is not AttentionType.DECODER:
            self._check_off(_OF_A_DECODER, f"{self.attn_type} has none, only DECODER does")
        if self.attn_type is AttentionType.ENCODER_DECODER:
            self._check_off(_OF_COMMON_POSITIONS, f"{self.attn_type} has no common positions")
        if self.rope and self.kv_sharing:
            raise ContractError("rope", True, "False with kv_sharing: it writes nothing that could be rotated")

    def _check_off(self, fields: Mapping[str, object], why: str) -> None:
        """Check that fields have the values that ask for nothing."""
        for name, off in fields.items():
            if (got := getattr(self, name)) != off:
                raise ContractError(name, named(got), f"{off}: {why}")

    @classmethod
    def of(cls, layer: Layer, dtype: torch.dtype, *, block_size: int | None, **batches: Any) -> "AttentionConfig":
        """What a layer asks for.

        `batches` says what its steps may be: ranges, qq_bias, non_causal, per_request_causal, lse, batch_invariant, rope,
        kv_sharing, output_dtype.
        """
        scales: Scales | None = None
        if layer.kv_cache_dtype is not None:
            fixed = [scale.numel() for scale in (layer.k_scale, layer.v_scale) if scale is not None]
            inline = layer.layout is not None and layer.layout.has_inline_scales
            scales = "inline" if inline else "token" if not fixed else "tensor" if max(fixed) == 1 else "head"
        return cls(
            num_heads=layer.num_heads,
            num_kv_heads=layer.num_kv_heads,
            head_size=layer.head_size,
            dtype=dtype,
            attn_type=layer.attn_type,
            block_size=block_size,
            layout=layer.layout,
            kv_cache_dtype=layer.kv_cache_dtype,
            scales=scales,
            window=layer.window,
            sink_tokens=layer.sink_tokens,
            chunked_local=layer.chunked_local,
            logits_soft_cap=layer.logits_soft_cap,
            alibi=layer.alibi_slopes is not None,
            sinks=layer.sinks is not None,
            ranges_clamped=layer.ranges_clamped,
            **batches,
        )

    @property
    def group_size(self) -> int:
        return self.num_heads // self.num_kv_heads


_FLAGS = tuple(field.name for field in dataclasses.fields(AttentionConfig) if field.type is bool)
# by what a layer may lack: the fields that ask for it, and their values that do not
_OF_A_CACHE = {"block_size": None, "layout": None, "kv_cache_dtype": None, "kv_sharing": False}
_OF_CAUSALITY = {"non_causal": False, "per_request_causal": False}
_OF_A_DECODER = {"ranges": False, "ranges_clamped": False, "qq_bias": False, "rope": False}
_OF_COMMON_POSITIONS = {"window": (UNLIMITED, UNLIMITED), "sink_tokens": 0, "chunked_local": None, "alibi": False}


@dataclass(frozen=True)
class Refusal:
    """One property that a backend does not support, in words, and why not."""

    property: str
    reason: str

    def __str__(self) -> str:
        return f"{self.property} not supported: {self.reason}"


def unsupported(backend: str, refusals: Sequence[Refusal], instead: str | None = None) -> UnsupportedError:
    """The error that has all the reasons, of which there is at least one."""
    first, *others = refusals
    return UnsupportedError(backend, first.property, "; ".join((first.reason, *map(str, others))), instead)


@dataclass(frozen=True, kw_only=True)
class Combination:
    """Properties that a backend supports one by one, but not together, or not on every architecture.

    Args:
        property: in words.
        applies: whether a config asks for that, on an architecture; None where that is not known yet.
        reason: why not.
    """

    property: str
    applies: Callable[[AttentionConfig, str | None], bool]
    reason: str


@dataclass(frozen=True, kw_only=True)
class Capabilities:
    """A backend's declaration. There are no defaults: silence about a property is how it gets lost.

    Args:
        backend: its name.
        available: YES, or why it cannot run at all where it is installed.
        architectures: prefixes of what it runs on, such as "gfx94".
        attn_types: an answer for each.
        layouts: in order of preference; empty for a backend without a cache.
        scales: of quantized caches.
        window: an answer about any window but (-1, -1); the rest likewise, by the field of AttentionConfig.
        combinations: what it does not support together.

    Raises:
        ContractError: an answer of another kind, or none about an attention type.
    """

    backend: str
    available: Answer
    architectures: Values
    attn_types: Mapping[AttentionType, Answer]
    dtypes: Values
    head_sizes: Values
    group_sizes: Values
    block_sizes: Values
    layouts: Only
    kv_cache_dtypes: Values
    scales: Values
    output_dtypes: Values
    window: Answer
    sink_tokens: Answer
    chunked_local: Answer
    logits_soft_cap: Answer
    alibi: Answer
    sinks: Answer
    ranges: Answer
    qq_bias: Answer
    non_causal: Answer
    per_request_causal: Answer
    lse: Answer
    batch_invariant: Answer
    rope: Answer
    combinations: tuple[Combination, ...] = ()

    def __post_init__(self) -> None:
        check_type("attn_types", self.attn_types, Mapping, "an answer by AttentionType")
        check_type("layouts", self.layouts, Only, "Only, in order of preference")
        if missing := [str(attn_type) for attn_type in AttentionType if attn_type not in self.attn_types]:
            raise ContractError("attn_types", f"no answer about {', '.join(missing)}", "one about every AttentionType")
        for field in dataclasses.fields(self):
            answer = getattr(self, field.name)
            if field.type is Values:
                check_type(field.name, answer, Values, "Only, Multiples or ANY")
            if field.type is Answer and answer is not True and not (isinstance(answer, No) and str.__len__(answer)):
                raise ContractError(field.name, shown(answer), "YES, or No with a reason")

    def refusals(self, config: AttentionConfig, architecture: str | None = None) -> list[Refusal]:
        """All that a config (on an architecture, if given) asks for and this backend does not do; none: it serves it."""
        check_type("config", config, AttentionConfig, "an AttentionConfig")
        check_type("architecture", architecture, str | None, "None or a name such as gfx942")
        return list(self._refusals(config, architecture))

    def _refusals(self, config: AttentionConfig, architecture: str | None) -> Iterable[Refusal]:
        if isinstance(self.available, No):
            yield Refusal("this installation", str(self.available))
        if architecture is not None and not _has_prefix(self.architectures, architecture):
            yield Refusal(f"architecture {architecture}", f"{self.architectures.why} ({self.architectures})")
        if isinstance(answer := self.attn_types[config.attn_type], No):
            yield Refusal(_ATTN_TYPES[config.attn_type], str(answer))
        for name, value, values in (
            ("dtype", config.dtype, self.dtypes),
            ("head size", config.head_size, self.head_sizes),
            ("query heads for each KV head:", config.group_size, self.group_sizes),
            ("block size", config.block_size, self.block_sizes),
            ("layout", config.layout, self.layouts),
            ("KV cache dtype", config.kv_cache_dtype, self.kv_cache_dtypes),
            ("scales of a quantized cache:", config.scales, self.scales),
            ("output dtype", config.output_dtype, self.output_dtypes),
        ):
            if value is not None and value not in values:
                yield Refusal(f"{name} {named(value)}", f"{values.why} (it takes {values})")
        for field, text in PROPERTIES.items():
            asked = config.window != (UNLIMITED, UNLIMITED) if field == "window" else getattr(config, field)
            if field == "ranges":
                asked = config.ranges or config.ranges_clamped
            if asked and isinstance(answer := getattr(self, field), No):
                yield Refusal(text, str(answer))
        for combination in self.combinations:
            if combination.applies(config, architecture):
                yield Refusal(combination.property, combination.reason)


PROPERTIES = {
    "window": "a sliding window",
    "sink_tokens": "sink_tokens (keys that stay visible)",
    "chunked_local": "chunked_local",
    "logits_soft_cap": "a soft cap of the logits",
    "alibi": "ALiBi",
    "sinks": "sinks",
    "ranges": "bidirectional ranges",
    "qq_bias": "qq_bias",
    "non_causal": "non-causal decoder attention",
    "per_request_causal": "one causal flag per request",
    "lse": "the LSE",
    "batch_invariant": "batch invariance",
    "rope": "RoPE in the cache write",
}
"""The yes-or-no properties, by field, in words."""

_ATTN_TYPES = {
    AttentionType.DECODER: "decoder attention (DECODER)",
    AttentionType.ENCODER: "encoder attention (ENCODER)",
    AttentionType.ENCODER_ONLY: "encoder-only attention (ENCODER_ONLY)",
    AttentionType.ENCODER_DECODER: "cross-attention (ENCODER_DECODER)",
}


def named(value: object) -> str:
    """A value as a message shows it: a dtype without its module."""
    return str(value).removeprefix("torch.")


def _has_prefix(values: Values, architecture: str) -> bool:
    if isinstance(values, Only):
        return any(architecture.startswith(prefix) for prefix in values.values)
    return architecture in values


def _check_one_of(name: str, value: object, allowed: tuple[Any, ...]) -> None:
    if not any(value is one or (type(value) is type(one) and value == one) for one in allowed):
        raise ContractError(name, shown(value), f"one of {', '.join(named(one) for one in allowed)}")
