"""Rules: what a call may ask for beyond plain attention. A rule is one record, and silence about a rule is refusal.

A rule of a layer or of a step is a field of Layer or Batch, and the field's declaration carries the record:

    chunked_local: int | None = rule(None, label="attention in chunks (chunked_local)", acts_on=VISIBILITY, check=...)

Whatever must know of all rules is derived from these records: the argument checks, the op schemas, AttentionConfig, the
declarations of backends and adapters, the fuzzer's cases, targets and tables, the options of the command line.

An implementation names the rules that it implements, and refuses a call that asks for any other rule (`active_rules`,
`refuse_unnamed`). So it also refuses a rule that was added after it was written, and a field that has no record at all.
"""

import dataclasses
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from types import MappingProxyType
from typing import Any, Final, Literal, TypeVar

import torch

from attn_contract.arguments import shown
from attn_contract.attention_type import AttentionType
from attn_contract.errors import ContractError, UnsupportedError
from attn_contract.rule_types import RULE_TYPES, Check, is_of_type


class ActsOn(StrEnum):
    """The step of attention that a rule changes."""

    VISIBILITY = "visibility"
    """The set of keys that a query sees."""
    LOGITS = "logits"
    """The logit of a visible key."""
    SOFTMAX = "softmax"
    """The sum of the weights of the visible keys."""
    VALUES = "values"
    """The values that the weights multiply."""
    CALL = "call"
    """The launch of a step, and its results, writes and promises besides the output."""


VISIBILITY, LOGITS, SOFTMAX, VALUES, CALL = ActsOn


class Axis(StrEnum):
    """What an axis of a tensor of Layer or Batch counts."""

    HEADS = "H"
    KV_HEADS = "HK"
    """KV heads; or one entry stands for all of them."""
    REQUESTS = "R"
    ROWS = "T"
    """Rows of q. There are at least num_actual_tokens entries."""
    QUERIES = "Q"
    """Queries of one request. There are at least max_query_len entries."""
    BLOCKS = "NB"
    OWN = "own"
    """Something that no other tensor counts."""


HEADS, KV_HEADS, REQUESTS, ROWS, QUERIES, BLOCKS, OWN = Axis

ALL_TYPES: Final = tuple(AttentionType)
SELF_ATTENTION: Final = (AttentionType.DECODER, AttentionType.ENCODER, AttentionType.ENCODER_ONLY)
DECODER_ONLY: Final = (AttentionType.DECODER,)
CACHED: Final = tuple(attn_type for attn_type in AttentionType if attn_type.reads_cache)
_RECORD = "attn_contract.rule"
_AXES = "attn_contract.axes"


@dataclass(frozen=True, kw_only=True)
class Rule:
    """One rule.

    Args:
        name: the rule's name everywhere: of the field of Layer or Batch, in declarations, cases, options and tables.
        holder: the class whose field the rule is. "call": the rule is a property of a call, and no field of Layer or Batch.
        off: the value that asks for nothing. It is None for tensors, and False for bools.
        type: the type of the rule's values, one of RULE_TYPES.
        label: a noun for messages and tables, such as "a sliding window".
        acts_on: the step of attention that the rule changes.
        attn_types: the attention types that have the rule.
        why_not: why the other attention types do not have it; empty if all have it.
        excludes: rules that a call with this one cannot ask for.
        why_excluded: why this rule excludes them; empty if it excludes none.
        check: what a value must fulfil beyond its type. A rule without a check takes every value of its type.
        axes: what the axes of a tensor count. A tensor with fewer axes lacks the first of them. Other rules have none.

    Raises:
        TypeError: a type that RULE_TYPES lacks, an off value of another type, a tensor without axes, or attention types or
            excluded rules without a reason.
    """

    name: str
    holder: Literal["Layer", "Batch", "call"]
    off: Any
    type: Any
    label: str
    acts_on: ActsOn
    attn_types: tuple[AttentionType, ...] = ALL_TYPES
    why_not: str = ""
    excludes: tuple[str, ...] = ()
    why_excluded: str = ""
    check: Check | None = None
    axes: tuple[Axis, ...] = ()

    def __post_init__(self) -> None:
        if self.type not in RULE_TYPES:
            raise TypeError(f"rule {self.name}: its type is {self.type}, expected one of {', '.join(map(str, RULE_TYPES))}")
        if self.is_tensor or self.type is bool:
            fits = self.off is (None if self.is_tensor else False)
        else:
            fits = is_of_type(self.off, self.type)
        if not fits:
            raise TypeError(f"rule {self.name}: {shown(self.off)} cannot be the off value of {self.type}")
        if bool(self.axes) != self.is_tensor or not all(isinstance(axis, Axis) for axis in self.axes):
            raise TypeError(
                f"rule {self.name}: axes says what each axis of a tensor counts, each an Axis, and only of a tensor"
            )
        if bool(self.why_not) != (set(self.attn_types) != set(ALL_TYPES)):
            raise TypeError(f"rule {self.name}: why_not says why some attention types lack the rule, and only then")
        if bool(self.why_excluded) != bool(self.excludes):
            raise TypeError(f"rule {self.name}: why_excluded says why it excludes rules, and only then")

    @property
    def is_tensor(self) -> bool:
        """True if the values are tensors. A config or a case can only say that there is a tensor, not which."""
        return self.type == torch.Tensor | None

    def is_asked(self, value: object) -> bool:
        """True if a value asks for the rule: any other than the off value does."""
        return _is_on(value, self.off)

    def checked(self, value: object, holder: object = None) -> Any:
        """The value as Layer and Batch keep it.

        Raises:
            ContractError: the value is of another type or out of range.
        """
        if self.is_tensor and value is None:
            return value
        return (self.check or RULE_TYPES[self.type])(self.name, value, holder)

    def check_defined(self, value: object, attn_type: AttentionType) -> None:
        """Raise ContractError where a value asks for the rule and the attention type has none."""
        if self.is_asked(value) and attn_type not in self.attn_types:
            got = "a tensor" if isinstance(value, torch.Tensor) else value
            raise ContractError(self.name, got, f"{self.off} for {attn_type.name}: {self.why_not}")


def rule(off: Any, **record: Any) -> Any:
    """The default of a field of Layer or Batch that is a rule. The arguments are those of Rule, which `holds_rules` makes."""
    return dataclasses.field(default=off, metadata={_RECORD: record})


def with_axes(*axes: Axis, **default: Any) -> Any:
    """A field of Layer or Batch that is no rule, and may be a tensor with these axes; see `Rule.axes`."""
    return dataclasses.field(metadata={_AXES: axes}, **default)


_HOLDERS = ("Layer", "Batch", "call")
_rules: dict[str, Rule] = {}
RULES: Final[Mapping[str, Rule]] = MappingProxyType(_rules)
"""Every rule by its name: first the rules of Layer, then those of Batch, then those of a call."""

_Holder = TypeVar("_Holder")


def holds_rules(holder: type[_Holder]) -> type[_Holder]:
    """Register the rules of Layer or Batch, or of a class that adds fields to one of them.

    Raises:
        TypeError: a rule of that name exists already, a record is unsound (see Rule), or the class is another one.
    """
    named = [base.__name__ for base in holder.__mro__ if base.__name__ in ("Layer", "Batch")]
    if not named:
        raise TypeError(f"{holder.__name__} holds no rules: it is neither Layer nor Batch")
    inherited = [field for base in holder.__mro__[1:] for field in getattr(base, "__dataclass_fields__", {}).values()]
    for field in dataclasses.fields(holder):  # pyright: ignore[reportArgumentType]  # a dataclass
        if any(field is known for known in inherited):
            continue
        if field.name in _rules and _RECORD not in field.metadata:
            raise TypeError(f"rule {field.name}: {holder.__name__} hides it by a field without a record")
        if _RECORD in field.metadata:
            held = {"name": field.name, "holder": named[0], "off": field.default, "type": field.type}
            _register(Rule(**held, **field.metadata[_RECORD]))
    return holder


def _register(rule: Rule) -> None:
    if rule.name in _rules:
        raise TypeError(f"rule {rule.name}: there is one of that name already")
    in_order = sorted([*_rules.values(), rule], key=lambda one: _HOLDERS.index(one.holder))
    _rules.clear()
    _rules.update({one.name: one for one in in_order})


def _of_a_call(name: str, label: str, **record: Any) -> Rule:
    return Rule(name=name, holder="call", off=False, type=bool, label=label, acts_on=CALL, **record)


_HAS_CAUSALITY = {"attn_types": DECODER_ONLY, "why_not": "it is never causal, only DECODER has the choice"}
_HAS_CACHE = {"attn_types": CACHED, "why_not": "it has no KV cache"}
for _rule in (
    _of_a_call("non_causal", "non-causal decoder attention", **_HAS_CAUSALITY),
    _of_a_call("per_request_causal", "one causal flag per request", **_HAS_CAUSALITY),
    _of_a_call("lse", "the LSE"),
    _of_a_call("batch_invariant", "batch invariance"),
    _of_a_call("rope", "RoPE in the cache write", attn_types=DECODER_ONLY, why_not="only DECODER rotates what it writes"),
    _of_a_call("kv_sharing", "a cache that another layer writes", **_HAS_CACHE),
    _of_a_call("over_ranks", "a cache that ranks share", **_HAS_CACHE),
):
    _register(_rule)

PLAIN_FIELDS: Final = frozenset(
    {
        *("num_heads", "num_kv_heads", "head_size", "scale", "attn_type", "layout", "kv_cache_dtype"),
        *("k_scale", "v_scale", "k_scale_cache", "v_scale_cache", "output_scale"),
        *("query_start_loc", "seq_lens", "max_query_len", "max_seq_len", "num_actual_tokens", "causal"),
        *("block_table", "slot_mapping", "selected"),
    }
)
"""The fields of Layer and Batch that are no rules: every implementation reads them, or declares which values it serves.

A field that is missing here and has no record is refused by everybody. So a missing name only causes refusals. A wrong name
would hide an unsupported field: tests/contract/test_rules.py compares the names with the fields.
"""


def active_rules(*holders: Any) -> dict[str, Any]:
    """The rules of a Layer or a Batch, or of both, that are on, with their values by name.

    A field that is neither a rule nor plain counts too, unless it has its default: no implementation names it, so all refuse
    it.
    """
    return {
        name: value for holder in holders for name, off in askable(type(holder)) if _is_on(value := getattr(holder, name), off)
    }


@lru_cache
def askable(holder: type) -> tuple[tuple[str, object], ...]:
    """The fields of a class that may ask for something, with the value that asks for nothing. A backend asks in each step."""
    return tuple((field.name, _default(field)) for field in dataclasses.fields(holder) if field.name not in PLAIN_FIELDS)


def rule_named(argument: str, name: object) -> Rule:
    """The rule of that name.

    Raises:
        ContractError: naming the argument, because there is no such rule.
    """
    if name not in RULES:
        raise ContractError(argument, shown(name), f"one of {', '.join(RULES)}")
    return RULES[str(name)]


def label_of(name: str) -> str:
    """The label of a rule. A name that is no rule's stands for itself."""
    return RULES[name].label if name in RULES else name


def refuse_unnamed(implementation: str, names: Collection[str], *holders: Any, instead: str | None = None) -> None:
    """Refuse a Layer or a Batch, or both, that ask for a rule which an implementation does not name.

    Args:
        implementation: the name of the refusing side, for the message.
        names: the rules that it implements.
        instead: the name of a side that serves the call, for the message.

    Raises:
        UnsupportedError: naming the implementation and the first rule that it does not name.
    """
    for name in active_rules(*holders):
        if name not in names:
            raise UnsupportedError(implementation, label_of(name), "it does not implement this rule", instead)


def check_together(asked: Collection[str]) -> None:
    """Raise ContractError where one of the rules that a call asks for, by name, excludes another one."""
    for rule in (RULES[name] for name in asked if name in RULES):
        for name in rule.excludes:
            if name in asked:
                raise ContractError(rule.name, f"a value together with {label_of(name)}", f"{rule.off}: {rule.why_excluded}")


@lru_cache
def _held(holder: type) -> Mapping[str, Rule]:
    names = [field.name for field in dataclasses.fields(holder) if _RECORD in field.metadata]
    if unregistered := [name for name in names if name not in _rules]:
        raise TypeError(f"rule {unregistered[0]} is not registered: decorate {holder.__name__} with holds_rules")
    return MappingProxyType({name: _rules[name] for name in names})


def held_rules(holder: Any) -> Mapping[str, Rule]:
    """The rules among the fields of a Layer or Batch, or of either class, by name and in the order of the fields.

    Raises:
        TypeError: a class that adds a rule is not decorated with holds_rules.
    """
    return _held(holder if isinstance(holder, type) else type(holder))


@lru_cache
def axes_of(holder: type) -> Mapping[str, tuple[Axis, ...]]:
    """The axes of each field of Layer or Batch that may be a tensor, by name; see `Rule.axes`."""
    of_rules = {name: record.axes for name, record in _held(holder).items() if record.is_tensor}
    own = {field.name: field.metadata[_AXES] for field in dataclasses.fields(holder) if _AXES in field.metadata}
    found = of_rules | own
    return MappingProxyType({field.name: found[field.name] for field in dataclasses.fields(holder) if field.name in found})


def _default(field: "dataclasses.Field[Any]") -> object:
    """A field's default; MISSING, which equals no value, if it has none."""
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()


def _is_on(value: object, off: object) -> bool:
    return isinstance(value, torch.Tensor) or (value is not off and value != off)
