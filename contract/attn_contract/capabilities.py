"""Capabilities of a backend, declared once for the selector, the backend's constructor and the tables in the docs.

The answer about a rule (`attn_contract.rules`) is YES, or No with the reason. A set of values is Only, Multiples or ANY. A rule
that a declaration does not name is refused. `Capabilities.refusals` gives all reasons at once, so that a user need not find
them one by one. If a backend does not run on an architecture, that is the only reason.
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from attn_contract.arguments import check_type, named, shown
from attn_contract.attention_config import AttentionConfig
from attn_contract.attention_type import AttentionType
from attn_contract.errors import ContractError, UnsupportedError
from attn_contract.layouts import A_LATENT_LAYOUT
from attn_contract.rules import label_of, rule_named


class No(str):
    """The answer that something is not supported. The text is the reason, and its truth value is False."""

    __slots__ = ()

    def __bool__(self) -> bool:
        return False


YES: Final = True
NOT_DECLARED: Final = No("it is not declared")
Answer = Literal[True] | No


@dataclass(frozen=True)
class Only:
    """These values and no other.

    Args:
        values: values of any type that compares by equality.
        why: the reason that forbids all other values.

    Raises:
        ContractError: `values` is no tuple. A text would be taken for its letters.
    """

    values: tuple[Any, ...]
    why: str

    def __post_init__(self) -> None:
        check_type("values", self.values, tuple, "a tuple of values")

    def __contains__(self, value: object) -> bool:
        return value in self.values

    def __str__(self) -> str:
        return ", ".join(named(value) for value in self.values) or "none"


@dataclass(frozen=True)
class Multiples:
    """Multiples of a number.

    Args:
        of: the number, at least 1.
        why: the reason that forbids all other numbers.
        at_most: the largest one; None: there is no largest.
    """

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


@dataclass(frozen=True)
class Refusal:
    """One property that a backend does not support, in words, and why not."""

    property: str
    reason: str

    def __str__(self) -> str:
        return f"{self.property} not supported: {self.reason}"


def unsupported(backend: str, refusals: Sequence[Refusal], instead: str | None = None) -> UnsupportedError:
    """An error with all refusals. There must be at least one."""
    first, *others = refusals
    return UnsupportedError(backend, first.property, "; ".join((first.reason, *map(str, others))), instead)


@dataclass(frozen=True, kw_only=True)
class Combination:
    """Properties that a backend supports one by one, but not together, or not on every architecture.

    Args:
        property: the unsupported property, in words.
        applies: True if a config asks for it, on an architecture. The architecture is None where it is not known yet.
        reason: why it is not supported.
    """

    property: str
    applies: Callable[[AttentionConfig, str | None], bool]
    reason: str


@dataclass(frozen=True, kw_only=True)
class Capabilities:
    """Capabilities of a backend, or of one function. Silence is refusal: a feature that is not named is not supported.

    Args:
        backend: its name.
        available: YES, or the reason why it serves no layer at all, and the remedy.
        architectures: prefixes of the names of architectures that it runs on, such as "gfx94".
        attn_types: an answer about every attention type.
        dtypes: the dtypes of q, k and v.
        head_sizes, group_sizes, block_sizes: head size D, query heads of each KV head, slots of a block.
        layouts: the layouts of the KV cache, in order of preference; empty for a backend without a cache.
        kv_cache_dtypes, scales: the element types and the scales of quantized caches.
        output_dtypes: the dtypes of an output that is quantized with output_scale.
        top_ks: the most units that an indexer may select for a query, for a backend that serves selection_unit.
        rules: an answer by the name of each rule that the author has thought of. Any other rule is refused as not declared.
        combinations: properties that it does not support together.

    Raises:
        ContractError: an answer of another kind, an answer about an unknown rule, or none about an attention type.
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
    top_ks: Values = ANY
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
        for name in self.rules:
            rule_named("rules", name)
        answers = {"available": self.available, **{str(kind): answer for kind, answer in self.attn_types.items()}, **self.rules}
        for name, answer in answers.items():
            if answer is not True and not (isinstance(answer, No) and str.__len__(answer)):
                raise ContractError(name, shown(answer), "YES, or No with a reason")

    def answer(self, name: str) -> Answer:
        """The answer about a rule; NOT_DECLARED where there is none. An unknown name is a ContractError."""
        return self.rules.get(rule_named("name", name).name, NOT_DECLARED)

    def refusals(self, config: AttentionConfig, architecture: str | None = None) -> list[Refusal]:
        """All reasons why this backend does not serve a config, on an architecture if one is given. Empty: it does.

        If the backend does not run on the architecture, that is the only reason, because no layer would be served.
        """
        check_type("config", config, AttentionConfig, "an AttentionConfig")
        check_type("architecture", architecture, str | None, "None or a name such as gfx942")
        if architecture is not None and not _has_prefix(self.architectures, architecture):
            return [Refusal(f"architecture {architecture}", f"{self.architectures.why} ({self.architectures})")]
        return list(self._refusals(config, architecture))

    def _refusals(self, config: AttentionConfig, architecture: str | None) -> Iterable[Refusal]:
        if isinstance(self.available, No):
            yield Refusal("any layer", str(self.available))
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
            ("top_k", config.top_k, self.top_ks),
        ):
            if value is not None and value not in values:
                yield Refusal(f"{name} {named(value)}", f"{values.why} (it takes {values})")
        if config.has_latent_cache and not any(layout.has_latent_value for layout in self.layouts.values):
            yield Refusal(f"a latent cache (layout {A_LATENT_LAYOUT})", f"{self.layouts.why} (it takes {self.layouts})")
        if config.has_two_widths and not any(layout.takes_two_widths for layout in self.layouts.values):
            yield Refusal(
                "K and V of two widths in a cache (layout CONTENT_PACKED)", f"{self.layouts.why} (it takes {self.layouts})"
            )
        if config.layout is not None and config.block_size is not None:
            try:
                config.layout.check_sizes(config.head_size, config.block_size, config.itemsize)
            except ContractError as error:
                property = f"{error.argument.replace('_', ' ')} {error.got} in layout {config.layout}"
                yield Refusal(property, f"it must be {error.expected}")
        for name in config.rules:
            if isinstance(answer := self.answer(name), No):
                yield Refusal(label_of(name), str(answer))
        for combination in self.combinations:
            if combination.applies(config, architecture):
                yield Refusal(combination.property, combination.reason)


_ATTN_TYPES = {
    AttentionType.DECODER: "decoder attention (DECODER)",
    AttentionType.ENCODER: "encoder attention (ENCODER)",
    AttentionType.ENCODER_ONLY: "encoder-only attention (ENCODER_ONLY)",
    AttentionType.ENCODER_DECODER: "cross-attention (ENCODER_DECODER)",
}


def _has_prefix(values: Values, architecture: str) -> bool:
    if isinstance(values, Only):
        return any(architecture.startswith(prefix) for prefix in values.values)
    return architecture in values
