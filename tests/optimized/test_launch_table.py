"""The tables of launch parameters have an entry for every call, and each says where it is from."""

import itertools
from typing import get_args

import pytest
from attn_optimized.launch_table import Phase, entries, parameters_for, table_of

ARCHITECTURES = ("sm80", "sm90", "sm100", "gfx90a", "gfx942", "gfx950", "gfx1100", "gfx1201", "gfx1250", "gfx1301")
PHASES = get_args(Phase)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_call_has_parameters(architecture):
    for phase, itemsize, quantized in itertools.product(PHASES, (2, 4), (False, True)):
        for block_d in (16, 32, 64, 128, 256):
            call = {"phase": phase, "itemsize": itemsize, "block_d": block_d, "quantized": quantized}
            chosen = parameters_for(architecture, **call)
            assert min(chosen.block_m, chosen.block_n) >= 16
            assert chosen.maxnreg is None or architecture.startswith("sm"), "AMD's compiler has no such option"
            assert chosen.waves_per_eu is None or architecture.startswith("gfx"), "NVIDIA's has no such option"


@pytest.mark.parametrize("architecture", ["sm90", "gfx942", "gfx1201"])
def test_an_entry_says_where_it_is_from(architecture):
    sources = {entry.source for entry in entries(architecture)}
    assert all(source.startswith(("measured: ", "derived: ")) for source in sources)
    others = "NVIDIA" if architecture.startswith("gfx") else "AMD"
    assert not any(source.startswith("measured: ") and others in source for source in sources)


def test_similar_chips_share_a_table():
    assert entries("gfx942") != entries("gfx1201")
    for architecture, similar in (("gfx950", "gfx942"), ("gfx1100", "gfx1201")):
        if table_of(architecture) != architecture:
            assert entries(architecture) == entries(similar)


def test_the_first_entry_that_fits_counts():
    decode = [entry for entry in entries("sm90") if entry.phase == "decode" and entry.itemsize == 2 and not entry.quantized]
    sizes = [entry.most_block_d for entry in decode]
    assert sizes == sorted(set(sizes))
    assert sizes[-1] == 256
    call = {"phase": "decode", "itemsize": 2, "quantized": False}
    for entry in decode:
        assert parameters_for("sm90", **call, block_d=entry.most_block_d) == entry.parameters
