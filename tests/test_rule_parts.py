"""Whoever adds a rule, and forgets one of its hand-written places (CONTRIBUTING.md), is told which."""

import contextlib
import re
from pathlib import Path
from typing import Any, get_args, get_type_hints

import msgspec
import pytest
import torch
from attn_contract import AttentionType, Batch, ContractError, Layer, Layout
from attn_contract.layer import SCALES
from attn_contract.rules import LOGITS, RULES, SOFTMAX, VISIBILITY, active_rules, axes_of, held_rules
from attn_contract.validation.values import check_logit_values, check_scale_values
from attn_fuzz.cases import built, captures, case_file, contradictions, earlier, tensors, wrong_values
from attn_fuzz.cases.call import Call
from attn_fuzz.cases.case import CHANGES, Cache, Case, Request, Values
from attn_fuzz.cases.dimensions import value_on
from attn_fuzz.errors import UnbuiltError
from attn_fuzz.properties.rules import QUESTIONS
from attn_fuzz.run.case.attempt import call_attention
from attn_fuzz.strategies.rules import DRAWN_ELSEWHERE, NUMBERS
from attn_fuzz.targets.reference import REFERENCE_FP32
from attn_fuzz.targets.support import WITH_LATENT
from attn_optimized.launch.rules import IMPLEMENTED_RULES
from attn_reference import attention, masks
from attn_reference.logits import LOGIT_RULES
from attn_reference.masks import VISIBILITY_RULES

from tests.fuzz.verdict.test_properties import ALL
from tests.reference.test_visibility import ALONE, OPTIONS

replace = msgspec.structs.replace

ROOT = Path(__file__).parents[1]
NAMES = (*held_rules(Layer), *held_rules(Batch))


def named_in(*texts: str | None) -> set[str]:
    return {name for name in NAMES if any(re.search(rf"\b{name}(_|\b)", text or "") for text in texts)}


def named_below(folder: str) -> set[str]:
    return named_in(*(path.read_text(encoding="utf-8") for path in (ROOT / folder).rglob("*.py")))


VISIBLE, OF_LOGITS = frozenset({VISIBILITY}), frozenset({LOGITS, SOFTMAX})
EVERY = frozenset(rule.acts_on for rule in RULES.values())
PLACES = {
    "docstring of Layer or Batch": (EVERY, named_in(Layer.__doc__, Batch.__doc__)),
    "docstrings of attn_reference.attention and masks": (EVERY, named_in(attention.__doc__, masks.__doc__)),
    "attn_reference.masks.VISIBILITY_RULES": (VISIBLE, VISIBILITY_RULES),
    # q_scale is a part of a query there
    "attn_reference.logits.LOGIT_RULES": (OF_LOGITS, LOGIT_RULES | {"q_scale"}),
    "attn_optimized.launch.rules.IMPLEMENTED_RULES": (EVERY, IMPLEMENTED_RULES),
    # the kernels know a clamped range by the number range_left
    "optimized/attn_optimized/kernels": (
        VISIBLE | OF_LOGITS,
        named_below("optimized/attn_optimized/kernels") | {"ranges_clamped"},
    ),
    "attn_fuzz.cases.case.Case": (EVERY, WITH_LATENT.rules),
    "attn_fuzz.strategies.rules: NUMBERS or DRAWN_ELSEWHERE": (EVERY, NUMBERS.keys() ^ DRAWN_ELSEWHERE.keys()),
    "fuzz/attn_fuzz/exact": (OF_LOGITS, named_below("fuzz/attn_fuzz/exact") | {*SCALES}),
    "tests/reference/test_visibility.py: OPTIONS": (VISIBLE, {*OPTIONS, ALONE}),
    "tests/reference/test_logits.py": (OF_LOGITS, named_in((ROOT / "tests/reference/test_logits.py").read_text())),
    "tests/ops/small_calls.py": (EVERY, named_in((ROOT / "tests/ops/small_calls.py").read_text())),
}
"""For each place of a rule, on what the rules act that it must name, and those that it names."""


@pytest.mark.parametrize("name", NAMES)
def test_each_place_of_a_rule_names_it(name):
    acts_on = RULES[name].acts_on
    _fail_by_name(name, [place for place, (kinds, names) in PLACES.items() if acts_on in kinds and name not in names])


@pytest.mark.parametrize("name", NAMES)
def test_each_question_about_a_rule_has_one_answer(name):
    """A property says nothing beside a rule without an answer: see `attn_fuzz.properties.rules`."""
    answers = {each: (name in question.yes) + (name in question.no) for each, question in QUESTIONS.items()}
    _fail_by_name(
        name, [f"attn_fuzz.properties.rules.{each}: {count} answers" for each, count in answers.items() if count != 1]
    )


def test_questions_are_about_rules_that_there_are():
    assert {name for question in QUESTIONS.values() for name in question.answered} == set(NAMES)
    assert QUESTIONS


def _fail_by_name(name: str, places: list[str]) -> None:
    """pytest cuts a long list."""
    if places:
        pytest.fail("\n".join((f"rule {name} is missing in", *places)), pytrace=False)


def case_with(name: str) -> Case:
    """A case with a rule, of two KV heads if the rule allows them."""
    rule = RULES[name]
    dense = {} if AttentionType.DECODER in rule.attn_types else {"attn_type": rule.attn_types[0]}
    cache = Cache(layout=Layout.CONTENT_PACKED, block_size=4, num_blocks=8)
    sizes = {"head_size": 8, "num_kv_heads": 2, "group_size": 2, "values": Values("random", 3), "lse": True, "writes": False}
    per_key = 2 if name == "key_unit" else 1  # two blocks hold all keys then
    of_blocks = ((3, 7, (0, 1)), (1, 2, (2,)), (5, 12, (3, 4, 5)))
    requests = tuple(Request(n, m, blocks[: -(-(m // per_key) // 4)], True) for n, m, blocks in of_blocks)
    case = Case(target="reference-fp32", cache=cache, requests=requests, **sizes, **dense)
    if name == "bidirectional_ranges":
        return replace(case, requests=tuple(replace(each, bidirectional_ranges=((0, 6),)) for each in requests))
    if name == "q_scale":
        case = replace(case, cache=replace(cache, dtype="fp8_e4m3fn", scales="head"))
    if name == "ranges_clamped":
        case = replace(case, requests=tuple(replace(each, bidirectional_ranges=((0, 6),)) for each in requests))
    value = 4 if name in ("head_size_v", "selection_unit") else value_of(name)
    return replace(case, **{"window": (1, -1)} if name in ("sink_tokens", "ranges_clamped") else {}, **{name: value})


def value_of(name: str) -> Any:
    """A value that a case may have for a rule: one of the kinds of its tensor, or True, or a number."""
    if not RULES[name].is_tensor:
        return value_on(name)
    kinds = [value for kind in get_args(get_type_hints(Case)[name]) for value in get_args(kind)]
    return kinds[1] if len(kinds) > 1 else True


PLAIN = replace(case_with("window"), window=(-1, -1))


@pytest.mark.parametrize("name", NAMES)
def test_a_case_with_a_rule_is_built_with_it(name):
    case = case_with(name)
    assert contradictions.contradiction(case) is None
    step = tensors.build(case)
    assert name in built.asked_of(step)
    if RULES[name].is_tensor:
        holder = Layer if RULES[name].holder == "Layer" else Batch
        assert len(axes_of(holder)[name]) == getattr(step.layer if holder is Layer else step.batch, name).dim()


OFF = {field.name: field.default for field in msgspec.structs.fields(Case)}
_OF_OTHER_TENSORS = ("key_unit", "bidirectional_ranges")
"""Rules whose cases have other requests."""


@pytest.mark.parametrize("name", NAMES)
def test_a_built_step_that_lacks_a_rule_is_a_fault_by_its_name(name):
    case = case_with(name)
    off = PLAIN if name in _OF_OTHER_TENSORS else replace(case, **{name: RULES[name].off or OFF[name]})
    for asks, has in ((case, off), (off, case)):
        with pytest.raises(UnbuiltError, match=rf"^{name}: the step has "):
            built.check(asks, tensors.build(has))


@pytest.mark.parametrize("name", NAMES)
def test_every_earlier_call_of_a_case_with_a_rule_is_one_of_the_contract(name):
    """Or the change says by the records that there is none. None is lost by an exception."""
    step = tensors.build(case_with(name))
    made = set()
    for change in CHANGES:
        with earlier.changed(step, change) as other:
            made |= {change} if other is not None else set()
    assert {"same", "heads", "kv_heads", "requests", "contents"} <= made


@pytest.mark.parametrize("name", NAMES)
def test_an_earlier_call_turns_a_rule_on(name):
    plain = PLAIN
    if name == "head_size_v":
        dense = tuple(Request(each.query_len, each.query_len) for each in PLAIN.requests)
        plain = replace(PLAIN, attn_type=AttentionType.ENCODER_ONLY, cache=None, requests=dense, writes=True)
    if name == "q_scale":
        plain = replace(case_with(name), q_scale=None)
    with earlier.changed(tensors.build(plain), name) as other:
        assert other is not None
        assert name in built.asked_of(other)


@pytest.mark.parametrize("name", NAMES)
def test_a_captured_call_with_a_rule_is_built_with_it(name, tmp_path):
    case = case_with(name)
    step = tensors.build(case)
    call = Call(q=step.q, layer=step.layer, batch=step.batch, kv_cache=step.kv_cache)
    again = case_file.load(captures.capture(call, tmp_path / "case.json"))
    own, other = (dict(active_rules(each.layer, each.batch)) for each in (step, tensors.build(again)))
    assert own.keys() == other.keys()
    if RULES[name].is_tensor and name != "bidirectional_ranges":
        assert torch.equal(own[name][..., : other[name].shape[-1]][: len(other[name])], other[name])


@pytest.mark.parametrize("name", [name for name in NAMES if RULES[name].is_tensor and name != "bidirectional_ranges"])
def test_wrong_numbers_of_a_rule_are_refused(name):
    """By `validate`, too, which calls of a target are held to. A range is of integers, any of which is legal."""
    step = tensors.build(case_with(name))
    edges = wrong_values.of_attention(step.layer, step.batch, step.kv_cache)
    found = [edge for edge in edges if f"of {name} of" in edge.what and not edge.is_legal]
    assert found
    served = []
    for edge in found:
        with edge.holding, contextlib.suppress(ContractError):
            check_logit_values(step.layer, step.batch)
            check_scale_values(step.layer.tensors)
            served.append(f"attn_contract.validation.values serves {edge.what}")
    _fail_by_name(name, served)


@pytest.mark.parametrize("name", NAMES)
def test_no_property_blames_a_right_kernel_beside_a_rule(name):
    target, step = REFERENCE_FP32, tensors.build(case_with(name))
    call_attention(step, target)
    for each in ALL:
        assert each(step, lambda part: call_attention(part, target)) is None, each.name
