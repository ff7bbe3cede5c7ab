"""Rules: what a call may ask for beyond plain attention. A rule is one record, and silence about a rule is refusal.

A rule of a layer or of a step is a field of Layer or Batch, and the field's declaration carries the record:

    chunked_local: int | None = rule(None, words="chunked_local", acts_on=VISIBILITY, check=...)

Whatever must know of all rules is derived from these records: the border checks, the op schemas, AttentionConfig, the
declarations of backends and adapters, the fuzzer's cases, targets and tables, the options of the command line. An
implementation names the rules that it implements; it refuses a call that asks for any other (`asked`, `refuse_unnamed`), also
for a rule that was added after it was written, and for a field that has no record at all.
"""

import dataclasses
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from types import MappingProxyType
from typing import Any, Final, Literal, TypeVar

import torch

from attn_contract.attention_type import AttentionType
from attn_contract.errors import ContractError, UnsupportedError


class ActsOn(StrEnum):
    """The step of attention that a rule changes."""

    VISIBILITY = "visibility"
    """Which keys a query sees."""
    LOGITS = "logits"
    """What the logit of a visible key is."""
    SOFTMAX = "softmax"
    """What the weights of the visible keys sum up to."""
    CALL = "call"
    """How the step is run: what is returned, written or promised besides the output."""


VISIBILITY, LOGITS, SOFTMAX, CALL = ActsOn

Check = Callable[[str, Any, Any], Any]
"""(name, value, the Layer or Batch or None) to the value as it is kept. It raises ContractError."""

ALL_TYPES: Final = tuple(AttentionType)
SELF_ATTENTION: Final = (AttentionType.DECODER, AttentionType.ENCODER, AttentionType.ENCODER_ONLY)
DECODER_ONLY: Final = (AttentionType.DECODER,)
_RECORD = "attn_contract.rule"


@dataclass(frozen=True, kw_only=True)
class Rule:
    """One rule.

    Args:
        name: its name everywhere: of the field of Layer or Batch, in declarations, cases, options and tables.
        holder: whose field it is; "call" is how a layer is called or what its steps are, which no field says alone.
        off: the value that asks for nothing.
        type: of the field's values, such as `int | None`.
        words: a noun for people, such as "a sliding window".
        acts_on: the step of attention that it changes.
        attn_types: the attention types that have it.
        why_not: why the other attention types have none.
        check: of the value by itself; None where there is nothing to check.
    """

    name: str
    holder: Literal["Layer", "Batch", "call"]
    off: Any
    type: Any
    words: str
    acts_on: ActsOn
    attn_types: tuple[AttentionType, ...] = ALL_TYPES
    why_not: str = ""
    check: Check | None = None

    @property
    def is_tensor(self) -> bool:
        """Whether its values are tensors, of which a config or a case can only say that there is one."""
        return self.type == torch.Tensor | None

    def is_asked(self, value: object) -> bool:
        """Whether a value of the field asks for the rule."""
        return _is_on(value, self.off)

    def checked(self, value: object, holder: object = None) -> Any:
        """The value as Layer and Batch keep it.

        Raises:
            ContractError: it is of another type or out of range.
        """
        if self.check is None or (self.is_tensor and value is None):
            return value
        return self.check(self.name, value, holder)

    def check_defined(self, value: object, attn_type: AttentionType) -> None:
        """Raise ContractError where a value asks for the rule and the attention type has none."""
        if self.is_asked(value) and attn_type not in self.attn_types:
            got = "a tensor" if isinstance(value, torch.Tensor) else value
            raise ContractError(self.name, got, f"{self.off} for {attn_type.name}: {self.why_not}")


def rule(
    off: Any,
    *,
    words: str,
    acts_on: ActsOn,
    attn_types: tuple[AttentionType, ...] = ALL_TYPES,
    why_not: str = "",
    check: Check | None = None,
) -> Any:
    """A field of Layer or Batch that is a rule, off by default. The arguments are those of Rule."""
    record = {
        "words": words,
        "acts_on": acts_on,
        "attn_types": attn_types,
        "why_not": why_not,
        "check": check,
    }
    return dataclasses.field(default=off, metadata={_RECORD: record})


_HOLDERS = ("Layer", "Batch", "call")
_rules: dict[str, Rule] = {}
RULES: Final[Mapping[str, Rule]] = MappingProxyType(_rules)
"""Every rule, by name: those of a layer, those of a step, those of a call."""

_Holder = TypeVar("_Holder")


def holds_rules(holder: type[_Holder]) -> type[_Holder]:
    """Register the rules of Layer or Batch, or of a class that adds fields to one of them.

    Raises:
        TypeError: a rule of that name exists already.
    """
    is_batch = any(base.__name__ == "Batch" for base in holder.__mro__)
    inherited = {name for base in holder.__mro__[1:] for name in getattr(base, "__dataclass_fields__", ())}
    for field in dataclasses.fields(holder):  # pyright: ignore[reportArgumentType]  # a dataclass
        if _RECORD in field.metadata and field.name not in inherited:
            held = {"name": field.name, "holder": "Batch" if is_batch else "Layer", "off": field.default, "type": field.type}
            _register(Rule(**held, **field.metadata[_RECORD]))
    return holder


def _register(rule: Rule) -> None:
    if rule.name in _rules:
        raise TypeError(f"rule {rule.name}: there is one of that name already")
    in_order = sorted([*_rules.values(), rule], key=lambda one: _HOLDERS.index(one.holder))
    _rules.clear()
    _rules.update({one.name: one for one in in_order})


def _of_a_call(name: str, words: str, **record: Any) -> Rule:
    return Rule(name=name, holder="call", off=False, type=bool, words=words, acts_on=CALL, **record)


_NEVER_CAUSAL = "it is never causal, only DECODER has the choice"
for _rule in (
    _of_a_call("non_causal", "non-causal decoder attention", attn_types=DECODER_ONLY, why_not=_NEVER_CAUSAL),
    _of_a_call("per_request_causal", "one causal flag per request", attn_types=DECODER_ONLY, why_not=_NEVER_CAUSAL),
    _of_a_call("lse", "the LSE"),
    _of_a_call("batch_invariant", "batch invariance"),
    _of_a_call("rope", "RoPE in the cache write", attn_types=DECODER_ONLY, why_not="only DECODER rotates what it writes"),
    _of_a_call(
        "kv_sharing",
        "a cache that another layer writes",
        attn_types=tuple(attn_type for attn_type in AttentionType if attn_type.reads_cache),
        why_not="it has no KV cache",
    ),
):
    _register(_rule)

# Fields with a default that are no rules: declarations answer for them by their values.
_FORMATS = {
    *("attn_type", "layout", "kv_cache_dtype", "k_scale", "v_scale", "k_scale_cache", "v_scale_cache", "output_scale"),
    *("block_table", "slot_mapping"),
}


def asked(*holders: Any) -> dict[str, Any]:
    """What a Layer or a Batch, or both, ask for: by the name of each rule that is on, its value.

    A field of an unknown name counts too, unless it has its default: nobody names it, so everybody refuses it.
    """
    return {
        field.name: value
        for holder in holders
        for field in dataclasses.fields(holder)
        if field.default is not dataclasses.MISSING and field.name not in _FORMATS
        if _is_on(value := getattr(holder, field.name), field.default)
    }


def words_of(name: str) -> str:
    """A rule for people; a name that is no rule's stands for itself."""
    return RULES[name].words if name in RULES else name


def refuse_unnamed(implementation: str, names: Collection[str], *holders: Any, instead: str | None = None) -> None:
    """Refuse a Layer or a Batch, or both, that ask for a rule which an implementation does not name.

    Raises:
        UnsupportedError: naming the implementation and the first such rule.
    """
    for name in asked(*holders):
        if name not in names:
            raise UnsupportedError(implementation, words_of(name), "it does not implement this rule", instead)


@lru_cache
def _held(holder: type) -> Mapping[str, Rule]:
    names = [field.name for field in dataclasses.fields(holder) if _RECORD in field.metadata]
    return MappingProxyType({name: _rules[name] for name in names})


def held_rules(holder: Any) -> Mapping[str, Rule]:
    """The rules among the fields of a Layer or Batch, or of either class, by name and in the order of the fields."""
    return _held(holder if isinstance(holder, type) else type(holder))


def _is_on(value: object, off: object) -> bool:
    return isinstance(value, torch.Tensor) or (value is not off and value != off)
