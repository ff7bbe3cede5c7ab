"""Whoever adds a layout, or a latent format, and forgets one of its places (CONTRIBUTING.md) is told which."""

import re
from pathlib import Path

import pytest
from attn_binaries.shipped_calls import CALLS
from attn_contract import Layout
from attn_contract.layouts import LATENT_FORMATS
from attn_fuzz.targets import registry
from attn_fuzz.targets.triton import MODE_OF_FORMAT
from attn_lab.zoo import known_bugs

OPS_GUIDE = Path(__file__).parents[1] / "docs/guide/ops.md"


@pytest.mark.parametrize("layout", Layout)
def test_a_layout_has_a_row_in_the_guide_of_ops(layout):
    assert re.search(rf"^\|[^|]*`{layout}`[^|]*\|", OPS_GUIDE.read_text(encoding="utf-8"), re.MULTILINE)


@pytest.mark.parametrize("layout", Layout)
def test_a_layout_has_launches_that_ship(layout):
    """A read and a write of it are compiled, emulated and compared with budgets."""
    ops = {call.op for call in CALLS if call.layout is layout}
    assert ops >= {"paged", "write latent" if layout.has_latent_value else "write"}


@pytest.mark.parametrize("layout", LATENT_FORMATS)
@pytest.mark.parametrize("mode", ["", "@far", "@invariant"])
def test_a_latent_format_has_targets(layout, mode):
    assert registry.load(target_of(layout) + mode).support("cpu").layouts == (layout,)


@pytest.mark.parametrize("layout", LATENT_FORMATS)
def test_a_latent_format_has_a_mutant(layout):
    assert [bug for bug in map(known_bugs.read, known_bugs.FOLDER.glob("*.toml")) if bug.target == target_of(layout)]


def target_of(layout: Layout) -> str:
    return f"triton-latent@{MODE_OF_FORMAT[layout]}"
