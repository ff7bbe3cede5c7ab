"""Whatever the contract allows is drawn, or says why it is not; a new field says neither, and fails."""

from dataclasses import dataclass
from pathlib import Path

import pytest
from attn_contract import Layer
from attn_fuzz.cases import regions
from attn_fuzz.cases.regions import REGIONS, Region
from attn_fuzz.run.shard import FuzzPlan
from attn_lab.matrix.regions import region_counts, region_page


@pytest.fixture(scope="module")
def counts():
    return region_counts(FuzzPlan(target="triton", device="cpu", examples=300, seed=0, folder=Path()))


def test_every_field_and_argument_of_the_contract_has_regions():
    assert sorted(regions.fields()) == sorted(REGIONS)
    assert all(REGIONS.values())


def test_a_new_field_has_none(monkeypatch):
    @dataclass(frozen=True, eq=False, kw_only=True)
    class Longer(Layer):
        dropout: float = 0.0

    Longer.__name__ = "Layer"
    monkeypatch.setattr(regions, "Layer", Longer)
    assert set(regions.fields()) - set(REGIONS) == {"Layer.dropout"}


@pytest.mark.parametrize("field", REGIONS)
def test_every_legal_region_is_drawn_or_has_a_reason(field, counts):
    for region in REGIONS[field]:
        assert (region.holds is None) == bool(region.reason), region.name
        assert region.legal or region.holds is None, region.name
        assert region.holds is None or counts[field, region.name], f"{field}: never drawn: {region.name}"
    assert len({region.name for region in REGIONS[field]}) == len(REGIONS[field])


def test_a_region_that_no_case_lies_in_is_counted_as_0(monkeypatch):
    nowhere = {"Layer.scale": (Region("imaginary", lambda case, step: False),)}
    monkeypatch.setattr(regions, "REGIONS", nowhere)
    found = region_counts(FuzzPlan(target="triton", device="cpu", examples=3, seed=0, folder=Path()))
    assert found == {("Layer.scale", "imaginary"): 0}


def test_the_page_has_a_row_for_each_region(counts):
    page = region_page(counts)
    for field, found in REGIONS.items():
        for region in found:
            assert f"| `{field}` | {region.name} | " in page
    assert "| `Layer.k_scale` | below 2^-126, NaN, infinity | illegal | " in page
