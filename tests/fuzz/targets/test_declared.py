"""A backend serves what it declares and refuses the rest, on cases that have the sizes and forms of the kernels."""

import dataclasses
from pathlib import Path

import msgspec
import pytest
from attn_contract import UnsupportedError
from attn_fuzz.run import drawing
from attn_fuzz.run.case.trial import try_case
from attn_fuzz.run.shard import FuzzPlan
from attn_fuzz.strategies.tally import Tally
from attn_fuzz.targets import registry
from attn_fuzz.targets.attention_config import config_of
from attn_fuzz.targets.triton import TRITON

from tests.support.mostly_nightly import mostly_nightly

BACKENDS = [
    name
    for name in registry.battery()
    if (target := registry.load(name)).declares and "@" not in name and not target.unavailable("cpu")
]
FIELDS = ("layouts", "head_sizes", "block_sizes", "dtypes")
"""Fields of Support in which a backend's cases are as wide as the kernels'. A run of the fuzzer draws its other rules."""


def drawn(name: str, field: str, examples: int) -> list:
    """Cases of one layout's view alone: a step that writes through another layout is refused for that one."""
    found, target = [], registry.load(name)
    wide = {field: getattr(TRITON.support("cpu"), field), "exclude": lambda case: None}
    support = dataclasses.replace(target.support("cpu"), **wide)
    wider = dataclasses.replace(target, support=lambda device: support, refuses=False)
    plan = FuzzPlan(target=name, device="cpu", examples=examples, seed=1, folder=Path())
    drawing.draw_cases(plan, wider, lambda case, number: found.append(case), Tally())
    plain = (case.cache and msgspec.structs.replace(case.cache, writer=None, neighbour=None) for case in found)
    return [msgspec.structs.replace(case, cache=cache, earlier=()) for case, cache in zip(found, plain, strict=True)]


@pytest.mark.parametrize("field", mostly_nightly(FIELDS, ("layouts", "block_sizes")))
@pytest.mark.parametrize("name", mostly_nightly(BACKENDS, ("backend-rocm-attn", "backend-minimax-m3-sparse")))
def test_a_case_is_served_if_it_is_declared_and_refused_otherwise(name, field):
    target = registry.load(name)
    for case in drawn(name, field, 15):
        verdict, refusals = try_case(case, target, "cpu"), target.declares("cpu").refusals(config_of(case))
        is_refused = verdict.kind == "refused" or verdict.about == UnsupportedError.__name__
        assert is_refused if refusals and case.requests else verdict.passed, (case, verdict, refusals)
