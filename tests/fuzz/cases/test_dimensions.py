"""The table of dimensions names every field, tells features apart, and agrees with what is valid and what is drawn."""

from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import pytest
from attn_fuzz.cases.case import Cache, Case, Request, Rope, Values
from attn_fuzz.cases.dimensions import DIMENSIONS
from attn_fuzz.cases.features import FEATURES, features
from attn_fuzz.findings.aspects import ASPECTS, aspects
from attn_fuzz.run import shard
from attn_fuzz.run.shard import FuzzPlan

NAMES = [feature.name for feature in FEATURES]
NESTED = {"cache": Cache, "requests": Request, "rope": Rope, "values": Values}
FIELDS = [
    *(name for name in Case.__struct_fields__ if name not in NESTED),
    *(f"{name}.{field}" for name, struct in NESTED.items() for field in struct.__struct_fields__),
]


@pytest.fixture(scope="module")
def cases() -> list[Case]:
    return [
        case
        for target in ("triton", "triton-latent", "triton-latent@scaled", "triton-latent@e8m0-planes", "triton-latent@e8m0")
        for case in shard.drawn(plan(target, 150))
    ]


def plan(target: str, examples: int) -> FuzzPlan:
    return FuzzPlan(target=target, device="cpu", examples=examples, seed=0, folder=Path())


@pytest.mark.parametrize("field", FIELDS)
def test_each_field_of_a_case_is_of_one_dimension(field):
    named = [one for one in DIMENSIONS if field in one.fields]
    assert len(named) == 1, f"{field}: expected one dimension of attn_fuzz.cases.dimensions, got {[one.name for one in named]}"


def test_no_dimension_names_what_there_is_not():
    assert {name for one in DIMENSIONS for name in one.fields} <= set(FIELDS)


def test_each_dimension_of_a_rule_has_a_value():
    assert [each.name for each in DIMENSIONS if each.rule is not None and not each.values] == []


def kinds_of(hint: Any) -> set[Any]:
    """The strings that a type allows."""
    own = get_args(hint)
    return {*own} if get_origin(hint) is Literal else {kind for each in own for kind in kinds_of(each)}


@pytest.mark.parametrize("field", [name for name, hint in get_type_hints(Case).items() if len(kinds_of(hint)) > 1])
def test_each_kind_of_a_field_is_drawn_to_meet_others(field):
    if field == "program_order":
        pytest.skip("it is of the interpreter, and no property of a call")
    values = [value for one in DIMENSIONS if field in one.fields for value in one.values if value.kind == "feature"]
    for kind in kinds_of(get_type_hints(Case)[field]):
        case = Case(target="", **{field: kind})
        assert any(value.holds(case) for value in values), f"{field}={kind!r} has no feature"


def test_names_are_unlike():
    assert len({aspect.name for aspect in ASPECTS}) == len(ASPECTS)
    for one in DIMENSIONS:
        assert len({value.name for value in one.values}) == len(one.values)


@pytest.mark.parametrize("name", [feature.name for feature in FEATURES])
def test_a_feature_is_had_by_some_drawn_cases_and_not_by_all(name, cases):
    assert {name in features(case) for case in cases} == {False, True}


@pytest.mark.parametrize("target", ["reference-fp32", "triton-latent@scaled"])
def test_every_feature_of_a_drawn_case_is_an_aspect(target):
    for case in shard.drawn(plan(target, 50)):
        assert aspects(case) >= set(features(case))
