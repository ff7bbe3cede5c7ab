"""A dimension of calls, and the parts of its values."""

from collections.abc import Callable, Collection, Container, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from attn_contract import AttentionType
from attn_fuzz.cases.case import Cache, Case, Request

Holds = Callable[[Case], object]
Asks = Callable[[Any], object]


class Value(NamedTuple):
    """A value of a dimension, which some calls have.

    Attributes:
        name: unlike that of every other feature and aspect, and of every other value of its dimension.
        kind: A "feature" is counted, and drawn to meet others. An "aspect" is what a failure may need: see
            `attn_fuzz.findings.aspects`.
        holds: True if a case has it. For a value of a rule, it is only asked of cases that have the rule.
        asks: of a feature, by a field of Support or Engine, True if the field's value lets a case have it.
    """

    name: str
    kind: Literal["feature", "aspect"]
    holds: Holds
    asks: Mapping[str, Asks] = {}


@dataclass(frozen=True)
class Dimension:
    """One thing in which calls differ.

    Args:
        name: the name of the dimension.
        group: the group of its features and aspects, for pages, and for the triples of `attn_fuzz.strategies.tally`.
        fields: names of fields: of Case, as "window"; of Cache, a request, Rope and Values, as "cache.padding". Each field
            belongs to one dimension.
        values: the values of the dimension.
        rule: the rule that all its values are about, if they are.
        of_layers: True if its fields say what a layer is. Those of a rule always do.
        needs_cache: True if only cases with a cache have its features.
    """

    name: str
    group: str
    fields: tuple[str, ...]
    values: tuple[Value, ...]
    rule: str | None = None
    of_layers: bool = False
    needs_cache: bool = False


def dimension(name: str, group: str, fields: str, **more: Any) -> Callable[..., Dimension]:
    """A dimension, which is called with its values. Names of fields are separated by spaces."""
    return lambda *values: Dimension(name, group, tuple(fields.split()), values, **more)


def feature(name: str, holds: Holds, **asks: Asks) -> Value:
    return Value(name, "feature", holds, asks)


def equals(name: str, field: str, value: Any, **asks: Asks) -> Value:
    """A feature: a field of Case has a value."""
    return feature(name, lambda case: getattr(case, field) == value, **asks)


def aspect(name: str, holds: Holds) -> Value:
    return Value(name, "aspect", holds)


def has(value: object) -> Callable[[Container[object]], bool]:
    return lambda values: value in values


def any_reads_cache(attn_types: Collection[AttentionType]) -> bool:
    return any(attn_type.reads_cache for attn_type in attn_types)


def always(case: Case) -> bool:
    return True


def of_cache(holds: Callable[[Cache], object]) -> Holds:
    return lambda case: case.cache is not None and bool(holds(case.cache))


def of_request(holds: Callable[[Request], object]) -> Holds:
    return lambda case: any(holds(request) for request in case.requests)
