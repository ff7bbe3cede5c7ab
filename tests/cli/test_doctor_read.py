"""A report of two numbers of stages: a table changes by times beyond the spread, and by no others."""

import json
import subprocess
from dataclasses import replace

import msgspec
import pytest
from attn_optimized.launch import table
from attn_optimized.launch.table import Entry
from attn_parity.commands.doctor import sections
from attn_parity.commands.doctor.clock import Time
from attn_parity.commands.doctor.stages import Pair, Variant

DECODE, DECODE_256, PREFILL = (
    next(each for each in table.entries("gfx942") if (each.phase, each.most_block_d, each.itemsize, each.quantized) == key)
    for key in (("decode", 128, 2, False), ("decode", 256, 2, False), ("prefill", 128, 2, False))
)


def pair_of(entry: Entry, gain: float | None, architecture: str = "gfx942", stages: tuple[int, int] = (1, 2)) -> Pair:
    times = [None, None] if gain is None else [Time(ms, 0.99 * ms, 1.01 * ms) for ms in (gain, 1.0)]
    shipped, other = (Variant(number, times=each) for number, each in zip(stages, times, strict=True))
    other.why_not = None if gain else "spills"
    return Pair(architecture, entry, shipped, other)


@pytest.fixture
def read(attn_parity, tmp_path):
    """The lines that `doctor --read` prints about launches, by name."""

    def printed(**pairs: Pair) -> str:
        machine = {"packages": {"torch": "2.13", "triton": "3.9.0"}, "devices": [{"name": "MI300X"}]}
        found = {f"stages of {name}": msgspec.to_builtins(pair) for name, pair in pairs.items()}
        report = {"schema": sections.SCHEMA, "time": "2026-12-01T00:00:00Z", "sections": {"machine": machine, **found}}
        (tmp_path / "here.json").write_text(json.dumps(report))
        ended = attn_parity("doctor", "--read", "here.json")
        return ended.out + ended.err

    return printed


def test_the_patch_gives_the_table_what_is_faster_beyond_the_spread(read, tmp_path):
    text = read(
        a=pair_of(DECODE, 1.5),
        b=pair_of(DECODE, 1.01),
        c=pair_of(DECODE_256, 1.01),
        d=pair_of(PREFILL, 1.5),
        e=pair_of(PREFILL, 0.8),
    )
    rows = [line.split() for line in text.splitlines() if line[:2] in ("a ", "b ", "c ", "d ", "e ")]
    chosen = {row[0]: row[-1] for row in rows}
    assert chosen == {"a": "2", "b": "1", "c": "1", "d": "2", "e": "1"}
    place = tmp_path / "optimized/attn_optimized/launch/table/gfx942.json"
    place.parent.mkdir(parents=True)
    place.write_text((table.FOLDER / "gfx942.json").read_text())
    patch = text[text.index("--- a/") :]
    subprocess.run(["git", "apply", "--unidiff-zero"], input=patch, text=True, check=True, cwd=tmp_path)
    entries = json.loads(place.read_text())["entries"]
    changed = [entry for entry, old in zip(entries, table.entries("gfx942"), strict=True) if entry["source"] != old.source]
    assert [(each["phase"], each["most_block_d"], each["parameters"]["num_stages"]) for each in changed] == [("decode", 128, 2)]
    assert changed[0]["source"].startswith(
        "measured: MI300X, torch 2.13, Triton 3.9.0, 2026-12-01, attn-parity doctor --full: 1.23"
    )


@pytest.mark.parametrize(
    ("pairs", "words"),
    [
        ({"a": pair_of(DECODE, 1.5), "b": pair_of(DECODE, None)}, "b: 2 are not timed: spills"),
        ({"a": pair_of(replace(DECODE, source="of another day"), 1.5)}, "a: today's table has another entry"),
        ({"a": pair_of(DECODE, 1.5, "gfx90a")}, "gfx90a has no table of its own"),
        ({}, "no launches of one GPU in two variants"),
        ({"a": pair_of(DECODE, 1.5, "mi300")}, "such as gfx90a, gfx942"),
    ],
)
def test_what_changes_no_table_says_why(pairs, words, read):
    text = read(**pairs)
    assert words in text
    assert "+++" not in text


def test_each_section_stands_beside_what_is_expected_of_it(read):
    text = read(a=pair_of(DECODE, 1.5))
    assert [line.split()[:2] for line in text.splitlines()[:2]] == [["section", "result"], ["machine", "written"]]
    assert "the GPU or the emulator is" in text


def test_a_launch_with_stages_of_its_own_says_nothing_of_the_entry(read):
    """As a prefill over X_PACKED, which ships with one stage where the entry of prefills has two."""
    [entry] = (
        each
        for each in table.entries("sm90")
        if (each.phase, each.itemsize, each.most_block_d, each.quantized) == ("prefill", 2, 128, False)
    )
    pairs = {"a": pair_of(entry, 1.5, "sm90", (2, 1)), "b": pair_of(entry, 0.8, "sm90", (1, 2))}
    assert '+  {"phase": "prefill"' in read(**pairs)
