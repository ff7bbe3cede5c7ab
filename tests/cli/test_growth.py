"""Reading a file takes time in proportion to it: a text that is eight times as long takes far less than 64 times as long."""

import contextlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
from attn_amdgcn import AmdgcnError, load, prepare
from attn_fuzz import inputs
from attn_fuzz.cases import case_file
from attn_fuzz.cases.case import SCHEMA
from attn_fuzz.errors import InputError
from attn_lab.zoo import known_bugs as mutants

from tests.emulated.kernels import KERNEL

LENGTH, TIMES = 3000, 8
"""The length of the shorter text, and the factor of the longer one."""
SECONDS = 0.005
"""The seconds that a clock does not tell apart."""
UNITS = (
    *('"\\', '"', "[", '{"a":', "1", "1,", '"\\u0041', " ", "\n", "#", '#"', "a.", "[a."),
    *("'''", '"""', '"a":1,', "[],", "a=1\n", "v1 /*", "*/", "s_getpc_b64 s[0:1]\nx:\n", ".amdgpu_metadata\n", " :: "),
    *(".amdhsa_a 1\n", ";", "(", "- ", "a: &a\n"),
    *("s_load_dword s6, s[0:1], 0x0\n", "x:\n", '.file 1 "a"\n', "a|", "0x"),
)


class Kind(NamedTuple):
    """Files of one reader: any number of units between a head and a tail, and a unit with which the reader takes all of it."""

    read: Callable[[Path], object]
    head: str = ""
    tail: str = ""
    whole: str = " "


KINDS = {
    "JSON": Kind(inputs.read_json, "[", "0]", whole="1,"),
    "TOML": Kind(inputs.read_toml, tail="a=1\n[b]\n"),
    "a case": Kind(case_file.load, f'{{"schema":"{SCHEMA}","target":"a","attn_type":"encoder","unwritten":[', "]}"),
    "mutants": Kind(mutants.read, tail=(mutants.FOLDER / "aiter-2720.toml").read_text()),
    "an assembly": Kind(lambda path: prepare(load(path.read_text())), tail=KERNEL),
}


@pytest.mark.nightly
@pytest.mark.parametrize(
    ("kind", "unit"), [(kind, unit) for kind in KINDS for unit in dict.fromkeys([*UNITS, KINDS[kind].whole])]
)
def test_time_grows_as_the_text_does(kind, unit, tmp_path):
    path, (read, head, tail, whole) = tmp_path / "file", KINDS[kind]

    def reading(length: int) -> float:
        path.write_text(head + unit * (length // len(unit)) + tail)
        return seconds(lambda: read(path), may_refuse=unit != whole)

    check_growth(reading)


@pytest.mark.parametrize("place", ["s_mov_b32 s7, 0", ".amdhsa_user_sgpr_count 2", "- .name: kernel"])
@pytest.mark.parametrize("unit", UNITS)
def test_time_grows_as_a_kernel_does(place, unit):
    def preparing(length: int) -> float:
        text = KERNEL.replace(place, f"{place}\n{unit * (length // len(unit))}")
        return seconds(lambda: prepare(load(text)), may_refuse=unit != "\n")

    check_growth(preparing)


def seconds(function: Callable[[], object], *, may_refuse: bool) -> float:
    """The CPU seconds of this process in a call."""
    begun = time.process_time()
    with contextlib.suppress(*((InputError, AmdgcnError) if may_refuse else ())):
        function()
    return time.process_time() - begun


def check_growth(taken: Callable[[int], float]) -> None:
    """Look again at what took too long: another process may have had the cache."""
    for _ in range(3):
        once, often = taken(LENGTH), taken(LENGTH * TIMES)
        if often < 3 * TIMES * once + SECONDS:
            return
    pytest.fail(f"{once:.4f} s, and {often:.4f} s for {TIMES} times the text")
