"""The table of dimensions names every field, tells features apart, and agrees with what is valid and what is drawn."""

from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import pytest
from attn_contract import AttentionType, Layout
from attn_fuzz.cases.case import Cache, Case, Request, Rope, Values
from attn_fuzz.cases.contradictions import contradiction
from attn_fuzz.cases.dimensions import DIMENSIONS, FLAGS, Setting
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


def made(setting: Setting) -> Case:
    """A causal prefill of three tokens with a setting."""
    attn_type = setting.fields.get("attn_type", AttentionType.DECODER)
    cache = Cache(**{"layout": Layout.KV_FIRST_NHD, "block_size": 16, "num_blocks": 4, **setting.cache})
    has_cache = bool(setting.cache) or attn_type.reads_cache
    flags = FLAGS[setting.causality or "causal"] if attn_type is AttentionType.DECODER else (False,)
    lengths, ranges = setting.lengths or ((3, 3),), ((0, 1),) if setting.ranges else ()
    requests = []
    for r in range(max(len(lengths), len(flags))):
        query_len, seq_len = lengths[r % len(lengths)]
        num_keys = seq_len // (setting.fields.get("key_unit") or 1)
        first, used = r * 2, -(-num_keys // cache.block_size) if has_cache else 0
        requests.append(Request(query_len, seq_len, tuple(range(first, first + used)), flags[r % len(flags)], ranges))
    return Case(
        target="",
        requests=tuple(requests),
        cache=cache if has_cache else None,
        per_request_causal=setting.causality == "per request",
        **setting.fields,
    )


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
def test_every_feature_of_a_drawn_case_is_an_aspect(target):
    for case in shard.drawn(plan(target, 50)):
        assert aspects(case) >= set(features(case))
