"""The specification is the docstrings of `attn_reference.attention` and of `masks`: it must speak of every rule."""

import re

import pytest
from attn_contract import Batch, Layer
from attn_contract.rules import held_rules
from attn_reference import attention, masks


@pytest.mark.parametrize("name", [*held_rules(Layer), *held_rules(Batch)])
def test_every_rule_is_specified(name):
    holder = Layer if name in held_rules(Layer) else Batch
    for text in (f"{attention.__doc__} {masks.__doc__}", holder.__doc__):
        assert re.search(rf"\b{name}\b", text or ""), f"{name}: the docstring does not define it"
