"""A field of a case that nobody builds changes nothing in the step. Then a run would agree over what never was."""

import dataclasses
import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from attn_contract import Layout
from attn_fuzz.cases import tensors
from attn_fuzz.cases.case import Cache, Case, Request, Rope, Values
from attn_fuzz.cases.contradictions import contradiction
from attn_fuzz.run.shard import FuzzPlan, drawn

NOT_BUILT = {
    "target": "it names who gets the step",
    "earlier": "calls before the step's own",
    "program_order": "how programs of a launch run",
    "selected_width": "of captured calls alone",
    "values.file": "of captured calls alone",
    "values.sha256": "of captured calls alone",
    "values.kind": "any other kind has other numbers, and a captured call a file",
}
"""The fields that no step shows, and why."""
NESTED = {"cache": Cache, "requests": Request, "rope": Rope, "values": Values}
FIELDS = [
    *(name for name in Case.__struct_fields__ if name not in NESTED),
    *(f"{name}.{field}" for name, struct in NESTED.items() for field in struct.__struct_fields__),
]
OTHER: dict[str, tuple[Any, ...]] = {
    "writes": (False,),
    "finite_slots": (True,),
    "cache.layout": tuple(Layout),
    "cache.dtype": ("fp8_e4m3fn", "fp8_e4m3fnuz"),
    "cache.scales": ("tensor", "head"),
    "cache.num_blocks": (64,),
    "cache.block_size": (16, 32),
    "rope.rotary_dim": (2, 4),
    "values.seed": (7,),
}
"""Values to try in place of a field's default, where most cases have the default, or there is none."""
TARGETS = {"reference-fp32": 120, "triton": 160}


@functools.cache
def cases() -> list[Case]:
    plans = [FuzzPlan(target=name, device="cpu", examples=count, seed=5, folder=Path()) for name, count in TARGETS.items()]
    return [case for plan in plans for case in drawn(plan)]


def parts(value: Any) -> Iterator[Any]:
    """What a step holds: of each tensor its form and the bytes of its storage."""
    if isinstance(value, torch.Tensor):
        storage = torch.empty(0, dtype=torch.uint8).set_(value.untyped_storage())  # pyright: ignore[reportArgumentType]
        yield value.dtype, tuple(value.shape), value.stride(), value.storage_offset(), storage.numpy().tobytes()
    elif dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            yield from parts(getattr(value, field.name))
    elif isinstance(value, dict | tuple | list):
        for each in value.values() if isinstance(value, dict) else value:
            yield from parts(each)
    else:
        yield repr(value)


def without(case: Case, name: str) -> Iterator[Case]:
    """The case with another value of a field: one of OTHER, or its default."""
    holder, _, field = name.rpartition(".")
    struct = getattr(case, holder) if holder else case
    if struct is None:
        return
    (default,) = (each.default for each in msgspec.structs.fields(struct) if each.name == field)
    for value in OTHER.get(name, (default,)):
        changed = msgspec.structs.replace(struct, **{field: value})
        yield msgspec.structs.replace(case, **{holder: changed}) if holder else changed


@pytest.mark.parametrize("name", [name for name in FIELDS if name not in NOT_BUILT and not name.startswith("requests.")])
def test_each_field_of_a_case_changes_the_step(name):
    tried = 0
    for case in cases():
        for other in without(case, name):
            if other == case or contradiction(other):
                continue
            tried += 1
            if [*parts(tensors.build(case))] != [*parts(tensors.build(other))]:
                return
    pytest.fail(
        f"{name}: nothing builds it (attn_fuzz.cases.tensors); {tried} cases without it had the same step", pytrace=False
    )
