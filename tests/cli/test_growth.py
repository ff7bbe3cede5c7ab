"""Reading a file takes time in proportion to it: a text that is eight times as long takes far less than 64 times as long."""

import contextlib
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from attn_amdgcn import load, prepare
from attn_fuzz import inputs
from attn_fuzz.cases import case_file
from attn_fuzz.exhaustive import ledger
from attn_fuzz.exhaustive.ledger import RunOf
from attn_lab.mutate import campaign, generate
from attn_lab.zoo import known_bugs as mutants
from attn_parity.binaries import run_folder, saved

from tests.emulated.test_run import KERNEL

LENGTH, TIMES = 3000, 8
"""The length of the shorter text, and the factor of the longer one."""
SECONDS = 0.005
"""The seconds that a clock does not tell apart."""
UNITS = (
    *(
        '"\\',
        '"',
        "[",
        '{"a":',
        "1",
        "1,",
        '"\\u0041',
        " ",
        "\n",
        "#",
        '#"',
        "a.",
        "[a.",
        "'''",
        '"""',
        '"a":1,',
        "[],",
        "a=1\n",
    ),
    *("v1 /*", "*/", "s_getpc_b64 s[0:1]\nx:\n", ".amdgpu_metadata\n", " :: ", ".amdhsa_a 1\n", ";", "(", "- ", "a: &a\n"),
    *("s_load_dword s6, s[0:1], 0x0\n", "x:\n", '.file 1 "a"\n', "a|", "0x"),
)
RUN = RunOf(target="a", device="cpu", scope="ci", shard="1/1", sanitize=False, identity={})


def read_ledger(path: Path) -> None:
    with ledger.opened(path, RUN):
        pass


FILES: dict[str, Callable[[Path], object]] = {
    "JSON": inputs.read_json,
    "TOML": inputs.read_toml,
    "a case": case_file.load,
    "a ledger": read_ledger,
    "a log of mutants": lambda path: campaign.Log(path, generate.PACKAGE),
    "mutants": mutants.load,
    "launches.json": saved.read,
    "launch.json": lambda path: run_folder.read(path.parent),
    "an assembly": lambda path: prepare(load(path.read_text())),
}
HEADS = {
    "a ledger": ledger.msgspec.json.encode(RUN).decode() + "\n",
    "launches.json": f'{{"schema": "{saved.SCHEMA}", "launches": ',
}
TAILS = dict.fromkeys(("TOML", "mutants"), "a=1\n[b]\n")


@pytest.mark.nightly
@pytest.mark.parametrize("kind", FILES)
@pytest.mark.parametrize("unit", UNITS)
def test_time_grows_as_the_text_does(kind, unit, tmp_path):
    path = tmp_path / {"launch.json": "launch.json", "mutants": "mutant.toml"}.get(kind, "file")

    def read(length: int) -> float:
        path.write_text(HEADS.get(kind, "") + unit * (length // len(unit)) + TAILS.get(kind, ""))
        return seconds(lambda: FILES[kind](path))

    check_growth(read)


@pytest.mark.parametrize("place", ["s_mov_b32 s7, 0", ".amdhsa_user_sgpr_count 2", "- .name: kernel"])
@pytest.mark.parametrize("unit", UNITS)
def test_time_grows_as_a_kernel_does(place, unit):
    check_growth(lambda length: seconds(lambda: prepare(load(KERNEL.replace(place, unit * (length // len(unit)))))))


def seconds(function: Callable[[], object]) -> float:
    """The CPU seconds of this process in a call, which may raise."""
    begun = time.process_time()
    with contextlib.suppress(Exception):
        function()
    return time.process_time() - begun


def check_growth(taken: Callable[[int], float]) -> None:
    """Look again at what took too long: another process may have had the cache."""
    for _ in range(3):
        once, often = taken(LENGTH), taken(LENGTH * TIMES)
        if often < 3 * TIMES * once + SECONDS:
            return
    pytest.fail(f"{once:.4f} s, and {often:.4f} s for {TIMES} times the text")
