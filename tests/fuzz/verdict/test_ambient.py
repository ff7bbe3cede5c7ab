"""A verdict, its explanation and a check of a live call are the same whatever torch is set to around them."""

import dataclasses

import attn_fuzz
import attn_reference
import msgspec
import pytest
import torch
from attn_fuzz.explain import explanation
from attn_fuzz.run.case.trial import try_case
from attn_fuzz.targets import Rounding, Target
from attn_fuzz.targets.support import EVERYTHING

from tests.fuzz.explain.test_explain import PLAIN
from tests.fuzz.verdict.test_properties import ALL
from tests.support.ambient import STATES, states_that_change
from tests.support.calls import paged_call, random_tokens

CASE = msgspec.structs.replace(PLAIN, window=(3, 3), logits_soft_cap=5.0, sinks="near")


def without_window(q, k, v, kv_cache, layer, batch, *, out, lse) -> None:
    layer = dataclasses.replace(layer, window=(-1, -1))
    attn_reference.paged_attention(q, kv_cache, layer, batch, out=out, lse=lse)


TARGET = Target(
    name="planted",
    description="forgets the window",
    attention=without_window,
    support=lambda device: EVERYTHING,
    refuses=False,
    rounding=lambda device: Rounding(keys_per_tile=64),
)


@pytest.mark.parametrize("state", STATES)
def test_a_verdict_and_its_explanation(state):
    verdict, explained = try_case(CASE, TARGET, "cpu"), explanation.explain(CASE, TARGET, "cpu")
    assert not verdict.passed
    assert explained.explanation
    with STATES[state]():
        assert try_case(CASE, TARGET, "cpu").message == verdict.message
        assert explanation.explain(CASE, TARGET, "cpu").explanation == explained.explanation


def test_a_check_of_a_live_call(device):
    call = paged_call(random_tokens([3, 1], [9, 4]), device=device, sinks=[0.5, 1.0, -1.0, 0.0], logits_soft_cap=5.0)
    out = attn_reference.paged_attention(*call)
    out[1] += 1e-6
    live = attn_fuzz.Call(q=call.q, kv_cache=call.kv_cache, layer=call.layer, batch=call.batch)
    assert states_that_change(lambda: attn_fuzz.check(live, out).of_bound["out"]) == []


@pytest.mark.parametrize("state", [state for state in STATES if state.startswith("default")])
def test_a_target_has_the_defaults_of_its_process(state):
    met = []

    def noting(q, k, v, kv_cache, layer, batch, *, out, lse) -> None:
        met.append((torch.get_default_dtype(), torch.get_default_device()))
        attn_reference.paged_attention(q, kv_cache, layer, batch, out=out, lse=lse)

    target = dataclasses.replace(TARGET, attention=noting, properties=tuple(ALL))
    case = msgspec.structs.replace(CASE, earlier=("same", "rows"))
    with STATES[state]():
        verdict, own = try_case(case, target, "cpu"), (torch.get_default_dtype(), torch.get_default_device())
    assert verdict.passed, verdict.message
    assert set(verdict.events) & {each.name for each in ALL}
    assert set(met) == {own}
