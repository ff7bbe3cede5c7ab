"""A table is taken apart and put together without a change of what is launched; what is written is read."""

import dataclasses
import importlib.util
import shutil
from pathlib import Path

import pytest
from attn_optimized.launch import table as launch_table
from attn_optimized.launch.table import Entry, Parameters, entry_for

from benchmarks.tune import table
from benchmarks.tune.classes import CLASSES, CallClass

TESTS_OF_TABLES = Path(__file__).parents[2] / "optimized" / "launch" / "test_launch_table.py"
ARCHITECTURES = ("sm90", "gfx942", "gfx1201")
DECODE_64, DECODE_128, DECODE_256 = CLASSES[:3]
NEW = Parameters(block_m=16, block_n=128, num_warps=8, num_stages=4, maxnreg=96)
SOURCE = "measured: a GPU, 2026-11-21"


def entry(call_class: CallClass, parameters: Parameters = NEW, source: str = SOURCE) -> Entry:
    return Entry(**call_class._asdict(), parameters=parameters, source=source)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A copy of the tables, which launches read."""
    copied = tmp_path / "tables"
    shutil.copytree(launch_table.FOLDER, copied)
    monkeypatch.setattr(launch_table, "FOLDER", copied)
    launch_table.entries.cache_clear()
    yield copied
    launch_table.entries.cache_clear()


def launched(architecture):
    """Parameters by call."""
    return {
        (call_class, block_d): entry_for(
            architecture,
            phase=call_class.phase,
            itemsize=call_class.itemsize,
            block_d=block_d,
            quantized=call_class.quantized,
        ).parameters
        for call_class in CLASSES
        for block_d in (16, 32, 64, 128, 256)
    }


def assert_tests_of_tables_pass():
    spec = importlib.util.spec_from_file_location("tests_of_tables", TESTS_OF_TABLES)
    assert spec is not None
    assert spec.loader is not None
    tests = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tests)
    for architecture in tests.ARCHITECTURES:
        tests.test_every_call_has_parameters(architecture)
        tests.test_an_entry_says_where_it_is_from(architecture)
    tests.test_similar_chips_share_a_table()
    tests.test_the_first_entry_that_fits_counts()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_table_written_without_a_change_launches_the_same(folder, architecture):
    before = launched(architecture)
    table.write(architecture, {})
    assert launched(architecture) == before
    first = (folder / f"{architecture}.json").read_bytes()
    table.write(architecture, {})
    assert (folder / f"{architecture}.json").read_bytes() == first


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_one_class_alone_is_replaced(folder, architecture):
    before = launched(architecture)
    chosen = NEW if architecture == "sm90" else dataclasses.replace(NEW, maxnreg=None)
    table.write(architecture, {DECODE_128: entry(DECODE_128, chosen)})
    after = launched(architecture)
    assert {call: parameters for call, parameters in after.items() if parameters != before[call]} == {
        (call_class, block_d): chosen
        for call_class, block_d in after
        if call_class[:2] == ("decode", 2) and not call_class.quantized and block_d == 128
    }
    assert_tests_of_tables_pass()


def test_an_architecture_without_a_table_gets_one_that_says_where_its_entries_are_from(folder):
    assert launch_table.table_of("gfx1250") == "gfx1201"
    before = launched("gfx1250")
    new = entry(DECODE_64, dataclasses.replace(NEW, maxnreg=None, waves_per_eu=2))
    assert table.write("gfx1250", {DECODE_64: new}) == folder / "gfx1250.json"
    assert launch_table.table_of("gfx1250") == "gfx1250"
    assert_tests_of_tables_pass()
    first, *others = launch_table.entries("gfx1250")
    assert first == new
    assert all(other.source.startswith("derived: as on gfx1201, where it is derived: ") for other in others)
    after = launched("gfx1250")
    changed = {call for call, parameters in after.items() if parameters != before[call]}
    assert changed == {
        (call_class, block_d)
        for call_class, block_d in after
        if call_class[:2] == ("decode", 2) and not call_class.quantized and block_d <= 64
    }
    similar = table.entry_of("gfx1201", DECODE_256).source
    assert table.entry_of("gfx1250", DECODE_256).source == f"derived: as on gfx1201, where it is {similar}"


def test_head_sizes_that_want_the_same_are_one_entry():
    old = dataclasses.replace(NEW, block_n=16)
    alike = [entry(DECODE_64), entry(DECODE_128), entry(DECODE_256, old)]
    assert table.merged(alike) == alike[1:]
    assert table.merged(alike[1:]) == alike[1:]


@pytest.mark.parametrize("other", ["derived: from a neighbour", "measured: a GPU, later"])
def test_an_entry_has_one_reason(other):
    both = [entry(DECODE_64), entry(DECODE_128, source=other)]
    assert table.merged(both) == both


def test_other_classes_are_never_merged():
    quantized = next(each for each in CLASSES if each.quantized)
    apart = [entry(DECODE_256), entry(quantized)]
    assert table.merged(apart) == apart
