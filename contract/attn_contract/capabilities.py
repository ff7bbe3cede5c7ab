"""What a backend can do, declared once: the selector, a backend's constructor and the table in the docs all ask this.

The answer about a rule (`attn_contract.rules`) is YES, or No with the reason; a set of values is Only, Multiples or ANY. A rule
that a declaration does not name is refused. `Capabilities.refusals` gives every reason at once: an engineer who repairs one
wants to know of the others.
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, get_args

import torch

from attn_contract.arguments import check_int, check_type, shown
from attn_contract.attention_type import AttentionType
from attn_contract.batch import Batch
from attn_contract.errors import ContractError, UnsupportedError
from attn_contract.layer import FLOAT8_DTYPES, FLOAT_DTYPES, QUANTIZED_DTYPES, Layer
from attn_contract.layouts import Layout
from attn_contract.rules import RULES, asked, words_of

Scales = Literal["tensor", "head", "token", "inline"]
"""Of a quantized cache: `k_scale` and `v_scale` for all heads or one per head; one per token and head in `k_scale_cache`; the
same in the cache's rows."""


class No(str):
    """A property that is not supported, and why not."""

    __slots__ = ()

    def __bool__(self) -> bool:
        return False


YES: Final = True
NOT_DECLARED: Final = No("it is not declared")
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
        output_dtype: a float8 type of `out`, with an output scale.
        rules: by the name of each rule of `attn_contract.rules` that the layer or one of its steps asks for, its value: as in
            Layer, or True for a tensor. A DECODER asks for `non_causal` if it may see steps with causal=False, for
            `per_request_causal` if one step may hold both kinds of requests; any layer for `lse` if the caller wants it, for
            `batch_invariant` if outputs must not depend on the rest of the batch, for `rope` if the cache write is to rotate
            too, for `kv_sharing` if it reads what another layer wrote and writes nothing.

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
    output_dtype: torch.dtype | None = None
    rules: Mapping[str, Any] = dataclasses.field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        for name in ("num_heads", "num_kv_heads", "head_size"):
            check_int(name, getattr(self, name), minimum=1)
        if self.num_heads % self.num_kv_heads:
            raise ContractError("num_heads", self.num_heads, f"a multiple of num_kv_heads ({self.num_kv_heads})")
        check_type("attn_type", self.attn_type, AttentionType, f"an AttentionType: {', '.join(AttentionType)}")
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
            for name in ("block_size", "layout", "kv_cache_dtype"):
                if (got := getattr(self, name)) is not None:
                    raise ContractError(name, named(got), f"None: {self.attn_type} has no KV cache")
        if self.layout is not None and self.layout.has_inline_scales != (self.scales == "inline"):
            raise ContractError(
                "layout", self.layout, f"one for scales {self.scales}: only CONTENT_PACKED_SCALED holds its own"
            )
        if self.scales == "inline" and self.block_size is not None:
            Layout.CONTENT_PACKED_SCALED.check_sizes(self.head_size, self.block_size, itemsize=1)
        self._check_rules()

    def _check_rules(self) -> None:
        """The rules that Layer and Batch check, where they are known already; those that are off are dropped."""
        check_type("rules", self.rules, Mapping, "values by the name of a rule")
        kept = {}
        for name, value in self.rules.items():
            if name not in RULES:
                raise ContractError("rules", shown(name), f"one of {', '.join(RULES)}")
            rule = RULES[name]
            if rule.is_tensor or rule.type is bool:
                check_type(name, value, bool, "a bool" + (": whether there is one" if rule.is_tensor else ""))
            else:
                value = rule.checked(value)
            if value is not False and rule.is_asked(value):
                rule.check_defined(value, self.attn_type)
                kept[name] = value
        object.__setattr__(self, "rules", {name: kept[name] for name in RULES if name in kept})
        if self.asks("per_request_causal") and not self.asks("non_causal"):
            raise ContractError("per_request_causal", True, "non_causal=True with it: some of the requests are")
        if self.asks("rope") and self.asks("kv_sharing"):
            raise ContractError("rope", True, "False with kv_sharing: it writes nothing that could be rotated")

    def asks(self, name: str) -> bool:
        """Whether a rule is asked for."""
        return name in self.rules

    def value_of(self, name: str) -> Any:
        """The value of a rule; where it is not asked for, the one that asks for nothing."""
        return self.rules.get(name, RULES[name].off)

    def with_rules(self, **rules: Any) -> "AttentionConfig":
        """The same with these rules, too."""
        return dataclasses.replace(self, rules={**self.rules, **rules})

    @classmethod
    def of(
        cls,
        layer: Layer,
        dtype: torch.dtype,
        *,
        block_size: int | None,
        batch: Batch | None = None,
        output_dtype: torch.dtype | None = None,
        **rules: Any,
    ) -> "AttentionConfig":
        """What a layer asks for, or a layer in one step.

        Args:
            batch: the step; None: what the layer asks for in all steps.
            output_dtype: of a float8 output.
            rules: what the caller asks for besides: lse, batch_invariant, rope, kv_sharing.
        """
        held = asked(layer) if batch is None else asked(layer, batch)
        held = {name: isinstance(value, torch.Tensor) or value for name, value in held.items()}
        if batch is not None:
            decoder = layer.attn_type is AttentionType.DECODER
            held["non_causal"] = decoder and batch.causal is not True
            held["per_request_causal"] = decoder and isinstance(batch.causal, torch.Tensor)
        return cls(
            num_heads=layer.num_heads,
            num_kv_heads=layer.num_kv_heads,
            head_size=layer.head_size,
            dtype=dtype,
            attn_type=layer.attn_type,
            block_size=block_size,
            layout=layer.layout,
            kv_cache_dtype=layer.kv_cache_dtype,
            scales=scales_of(layer),
            output_dtype=output_dtype,
            rules={**held, **rules},
        )

    @property
    def group_size(self) -> int:
        return self.num_heads // self.num_kv_heads

    @property
    def itemsize(self) -> int:
        """Bytes of an element of the cache."""
        return (self.kv_cache_dtype or self.dtype).itemsize


def scales_of(layer: Layer) -> Scales | None:
    """The kind of scales of a layer's quantized cache; None if it is not quantized."""
    if layer.kv_cache_dtype is None:
        return None
    if layer.layout is not None and layer.layout.has_inline_scales:
        return "inline"
    fixed = [scale.numel() for scale in (layer.k_scale, layer.v_scale) if scale is not None]
    return "token" if not fixed else "tensor" if max(fixed) == 1 else "head"


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
    """What a backend, or one function, declares to serve. Silence is refusal: whatever it does not name, it does not serve.

    Args:
        backend: its name.
        available: YES, or why it cannot run at all where it is installed.
        architectures: prefixes of what it runs on, such as "gfx94".
        attn_types: an answer for each.
        layouts: in order of preference; empty for a backend without a cache.
        scales: of quantized caches.
        rules: an answer by the name of each rule that somebody thought of; any other rule is refused as not declared.
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
    rules: Mapping[str, Answer]
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
        check_type("rules", self.rules, Mapping, "answers by the name of a rule")
        for name, answer in {"available": self.available, **self.rules}.items():
            if name != "available" and name not in RULES:
                raise ContractError("rules", shown(name), f"one of {', '.join(RULES)}")
            if answer is not True and not (isinstance(answer, No) and str.__len__(answer)):
                raise ContractError(name, shown(answer), "YES, or No with a reason")

    def answer(self, name: str) -> Answer:
        """About a rule, by its name."""
        return self.rules.get(name, NOT_DECLARED)

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
        if config.layout is not None and config.block_size is not None:
            try:
                config.layout.check_sizes(config.head_size, config.block_size, config.itemsize)
            except ContractError as error:
                property = f"{error.argument.replace('_', ' ')} {error.got} in layout {config.layout}"
                yield Refusal(property, f"it must be {error.expected}")
        for name in config.rules:
            if isinstance(answer := self.answer(name), No):
                yield Refusal(words_of(name), str(answer))
        for combination in self.combinations:
            if combination.applies(config, architecture):
                yield Refusal(combination.property, combination.reason)


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
