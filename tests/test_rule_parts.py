"""Whoever adds a rule, and forgets one of its hand-written places (CONTRIBUTING.md), is told which."""

import re
from pathlib import Path

import pytest
from attn_contract import Batch, Layer
from attn_contract.rules import LOGITS, RULES, SOFTMAX, VISIBILITY, held_rules
from attn_fuzz.strategies.rules import DRAWN_ELSEWHERE, NUMBERS
from attn_fuzz.targets.support import WITH_LATENT
from attn_optimized.launch.rules import IMPLEMENTED_RULES
from attn_reference import attention, masks
from attn_reference.logits import LOGIT_RULES
from attn_reference.masks import VISIBILITY_RULES

from tests.reference.test_visibility import ALONE, OPTIONS

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
    "fuzz/attn_fuzz/exact": (OF_LOGITS, named_below("fuzz/attn_fuzz/exact")),
    "tests/reference/test_visibility.py: OPTIONS": (VISIBLE, {*OPTIONS, ALONE}),
    "tests/reference/test_logits.py": (OF_LOGITS, named_in((ROOT / "tests/reference/test_logits.py").read_text())),
    "tests/ops/small_calls.py": (EVERY, named_in((ROOT / "tests/ops/small_calls.py").read_text())),
}
"""For each place of a rule, on what the rules act that it must name, and those that it names."""


@pytest.mark.parametrize("name", NAMES)
def test_each_place_of_a_rule_names_it(name):
    acts_on = RULES[name].acts_on
    assert not [place for place, (kinds, names) in PLACES.items() if acts_on in kinds and name not in names]
