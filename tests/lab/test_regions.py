"""Whatever the contract allows is drawn, or says why it is not; a new field says neither, and fails by its name."""

import msgspec
import pytest
from attn_fuzz.cases.dimensions import DIMENSIONS, Setting
from attn_fuzz.cases.dimensions.dimension import dimension, feature, region
from attn_fuzz.cases.features import made
from attn_lab.matrix import regions


@pytest.mark.parametrize("field", regions.fields())
def test_each_field_and_argument_of_the_contract_has_a_dimension(field):
    assert any(field in one.contract for one in DIMENSIONS)


def test_no_dimension_names_what_the_contract_has_not():
    assert {name for one in DIMENSIONS for name in one.contract} <= set(regions.fields())


@pytest.mark.parametrize("own", DIMENSIONS, ids=lambda own: own.name)
def test_every_region_is_counted_or_has_a_reason(own):
    """Another part tests that each is drawn: `tox run -e nightly -- coverage`."""
    assert all(value.reason or value.holds or value.in_step for value in own.values)


def test_a_region_that_no_case_lies_in_is_counted_as_0(monkeypatch):
    nowhere = dimension("scale")(region("imaginary", lambda case: False), feature("positive", lambda case: case.scale > 0))
    monkeypatch.setattr(regions, "DIMENSIONS", (nowhere,))
    positive = msgspec.structs.replace(made(Setting({}, {})), scale=1.0)
    found = regions.counts([(positive, None), (msgspec.structs.replace(positive, scale=0.0), None)])
    assert found == {("scale", "imaginary"): 0, ("scale", "positive"): 1, ("scale", regions.NONE): 1}
