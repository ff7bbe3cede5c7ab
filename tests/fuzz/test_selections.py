"""The second statement of what is selected notices a selector that does not ask the AITER that it should."""

import random

import pytest
import torch
from attn_contract import AttentionConfig, ContractError, UnsupportedError
from attn_fuzz.targets import selections
from attn_optimized.aiter_adapter import Aiter, recorded
from attn_optimized.selector import PRIORITIES, layer

CONFIG = AttentionConfig(num_heads=4, num_kv_heads=2, head_size=64, dtype=torch.float16, block_size=16)


def _refuse_none(aiter):
    if aiter is None:
        raise ContractError("aiter", "None", "an Aiter")
    return aiter


@pytest.mark.parametrize("wrong", [_refuse_none, lambda aiter: aiter or Aiter(missing="nobody has looked")])
def test_a_selector_that_does_not_find_the_installed_aiter_is_noticed(wrong, monkeypatch):
    given = selections.Asked("gfx942", PRIORITIES["gfx942"], recorded("2026-08"))
    found = given._replace(is_installed=True)
    for asked in (given, found):
        with selections.installed(recorded("2026-08")):
            selections.check(CONFIG, asked, random.Random(0))
    monkeypatch.setattr(layer, "known_aiter", wrong)
    selections.check(CONFIG, given, random.Random(0))
    with selections.installed(recorded("2026-08")), pytest.raises((AssertionError, ContractError, UnsupportedError)):
        selections.check(CONFIG, found, random.Random(0))
