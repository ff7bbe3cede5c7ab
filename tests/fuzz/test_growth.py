"""Reading a file takes time in proportion to it: a text that is twice as long takes at most twice as many steps."""

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
from attn_parity.binaries import budgets, executions, results, run_folder, saved

from tests.emulated.test_run import KERNEL
from tests.steps import steps

LENGTH = 500
"""Of the shorter text: longer than the bounds of numbers, names and depths."""
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
    "a log of mutants": lambda path: campaign.Log(path, "cpu", generate.PACKAGE),
    "mutants": mutants.load,
    "budgets": budgets.load,
    "launches.json": saved.read,
    "launch.json": lambda path: run_folder.read(path.parent),
    "binaries.csv": lambda path: results.loads(inputs.read_text(path), str(path)),
    "executions.csv": lambda path: executions.loads(inputs.read_text(path), str(path)),
    "an assembly": lambda path: prepare(load(path.read_text())),
}
HEADS = {
    "a ledger": ledger.msgspec.json.encode(RUN).decode() + "\n",
    "launches.json": f'{{"schema": "{saved.SCHEMA}", "launches": ',
}
TAILS = dict.fromkeys(("TOML", "mutants", "budgets"), "a=1\n[b]\n")


@pytest.mark.parametrize("kind", FILES)
def test_steps_grow_as_the_text_does(kind, tmp_path):
    path = tmp_path / {"launch.json": "launch.json", "mutants": "mutant.toml"}.get(kind, "file")

    def taken(text: str) -> int:
        path.write_text(text)
        return steps(lambda: FILES[kind](path))

    check_growth(lambda unit, times: taken(HEADS.get(kind, "") + unit * times + TAILS.get(kind, "")))


@pytest.mark.parametrize("place", ["s_mov_b32 s7, 0", ".amdhsa_user_sgpr_count 2", "- .name: kernel"])
def test_steps_grow_as_a_kernel_does(place):
    check_growth(lambda unit, times: steps(lambda: prepare(load(KERNEL.replace(place, unit * times)))))


def check_growth(taken: Callable[[str, int], int]) -> None:
    """Check the steps that each unit takes when it is repeated so often, and twice as often."""
    wrong = []
    for unit in UNITS:
        once, twice = (taken(unit, LENGTH * times // len(unit)) for times in (1, 2))
        if twice > 2.1 * once + 200:
            wrong.append(f"{unit!r}: {once} steps, and {twice} for twice the text")
    assert not wrong, "\n".join(wrong)
