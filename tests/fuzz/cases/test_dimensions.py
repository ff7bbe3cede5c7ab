"""The table of dimensions names every field, tells features apart, and agrees with what is valid and what is drawn."""

from itertools import combinations
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import pytest
from attn_fuzz.cases.case import Cache, Case, Request, Rope, Values
from attn_fuzz.cases.contradictions import contradiction
from attn_fuzz.cases.dimensions import DIMENSIONS, Setting
from attn_fuzz.cases.features import FEATURES, features, made, undefined
from attn_fuzz.findings.aspects import ASPECTS, aspects
from attn_fuzz.run import shard
from attn_fuzz.run.shard import FuzzPlan

NAMES = [feature.name for feature in FEATURES]
NESTED = {"cache": Cache, "requests": Request, "rope": Rope, "values": Values}
FIELDS = [
    *(name for name in Case.__struct_fields__ if name not in NESTED),
    *(f"{name}.{field}" for name, struct in NESTED.items() for field in struct.__struct_fields__),
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
    set_by = {each.fields.get(field) for one in DIMENSIONS for value in one.values for each in value.settings}
    assert kinds_of(get_type_hints(Case)[field]) - set_by == set()


def test_names_are_unlike():
    assert len({aspect.name for aspect in ASPECTS}) == len(ASPECTS)
    for one in DIMENSIONS:
        assert len({value.name for value in one.values}) == len(one.values)


def test_the_plainest_case_has_only_what_every_case_has():
    plainest = ["decoder, causal", "prefill", "float32", "KV_FIRST_NHD", "cache of the layer's dtype"]
    assert features(made(Setting({}, {}))) == plainest


@pytest.mark.parametrize("name", NAMES)
def test_a_feature_is_had_by_a_case_made_for_it_and_not_by_every_case(name):
    settings = FEATURES[NAMES.index(name)].value.settings
    cases = [made(setting) for setting in settings]
    valid = [case for case in cases if contradiction(case) is None]
    assert any(name in features(case) for case in valid)
    assert any(name not in features(made(other.value.settings[0])) for other in FEATURES)


@pytest.mark.parametrize("target", ["reference-fp32", "triton-latent@scaled"])
def test_no_drawn_case_has_two_features_of_which_none_is_said_to_have_both(target):
    for case in shard.drawn(plan(target, 50)):
        met = [pair for pair in combinations(features(case), 2) if undefined(*pair)]
        assert not met, case
        assert aspects(case) >= set(features(case))


@pytest.mark.parametrize(
    ("first", "second", "why"),
    [
        ("cross-attention", "alibi_slopes", "different sequences"),
        ("encoder", "qq_bias, a tree", "only DECODER has it"),
        ("encoder-only", "order LBHNC", "encoder_only has none"),
        ("float16", "bfloat16", "one or the other"),
        ("cache int8", "scale per head", "int8 has a scale for each token"),
        ("rope, partial", "nothing written", "only steps that write"),
    ],
)
def test_two_features_that_cannot_meet_say_why(first, second, why):
    assert why in undefined(first, second)
    assert undefined(first, second) == undefined(second, first)


@pytest.mark.parametrize(
    ("first", "second"), [("rope, NeoX", "rope, partial"), ("sinks", "LSE"), ("KV_FIRST_HND", "order BHLNC")]
)
def test_values_that_only_look_exclusive_are_defined_together(first, second):
    assert undefined(first, second) is None
