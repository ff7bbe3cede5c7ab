"""The command line in this process, an executor without a process of its own, and a case to start from."""

import contextlib
import os
import runpy
import signal
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from attn_contract import Layout
from attn_fuzz import outputs
from attn_fuzz.cases.case import Cache, Case, Request
from attn_fuzz.interpreted import program_order
from attn_fuzz.patches.mutant import Mutant, Patch
from attn_fuzz.run import shard
from attn_fuzz.run.case.trial import try_case
from attn_fuzz.run.shard import FuzzPlan
from attn_fuzz.targets import registry
from attn_fuzz.verdict.verdict import Verdict
from attn_parity import main

FOLDER = str(Path(__file__).parent / "planted")
sys.path.insert(0, FOLDER)  # spawned processes inherit it: they find `planted`


class Ended(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture
def attn_parity(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Ended]:
    """Runs the command in an empty folder, `tmp_path`; only its workers are processes."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: object, **others: Any) -> Ended:
        handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            with pytest.raises(SystemExit) as end:
                main([str(argument) for argument in arguments], **others)
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)  # an interrupted command ignores both until its process ends
        assert isinstance(end.value.code, int)
        return Ended(end.value.code, *capsys.readouterr())

    return run


@pytest.fixture
def full_for(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Lets files of these names find no space on the disk, in this process."""
    unnamed = outputs.partial_file

    def fill(*names: str) -> None:
        @contextlib.contextmanager
        def on_a_full_disk(path: Path) -> Iterator[Path]:
            with unnamed(path) as written:
                if path.name in names:
                    written.symlink_to("/dev/full")
                yield written

        monkeypatch.setattr(outputs, "partial_file", on_a_full_disk)

    return fill


@pytest.fixture
def child_environment() -> dict[str, str]:
    """For commands in a process of their own that are to find `planted`."""
    path = os.pathsep.join(filter(None, (FOLDER, os.environ.get("PYTHONPATH"))))
    return {**os.environ, "PYTHONPATH": path}


@pytest.fixture
def script_ends() -> Callable[[Path], int]:
    """Runs the script of a failure in this process, and returns its exit code.

    A script sets the order of programs for its process. It is as before afterwards.
    """

    def run(path: Path) -> int:
        with (
            program_order.programs("in order", 0),
            torch.enable_grad(),
            pytest.raises((SystemExit, RuntimeError)) as end,
        ):
            runpy.run_path(str(path), run_name="__main__")
        # what the kernel raises ends a script with 1, too
        return int(end.value.code) if isinstance(end.value, SystemExit) and isinstance(end.value.code, int | bool) else 1

    return run


class InProcess:
    """Runs cases as an Executor does, but here: for targets that neither hang nor kill."""

    def __init__(self, target: str) -> None:
        self.target = registry.load(target)
        self.cases: list[Case] = []

    def run(self, case: Case, *, exactly: bool = False, **options: object) -> Verdict:
        self.cases.append(case)
        return try_case(case, self.target, "cpu", exactly=exactly)


@pytest.fixture(scope="session")
def fuzz_in() -> Callable[..., tuple[shard.Progress, list[Case]]]:
    """Fuzzes one shard in this process and leaves its files in a folder; returns how it ended and all cases that it ran."""

    def run(folder: Path, target: str, **fields) -> tuple[shard.Progress, list[Case]]:
        executor = InProcess(target)
        plan = FuzzPlan(**{"target": target, "device": "cpu", "examples": 200, "seed": 1, "folder": folder, **fields})
        return shard.fuzz(plan, executor), executor.cases  # pyright: ignore[reportArgumentType]

    return run


@pytest.fixture
def fuzz_here(fuzz_in, tmp_path: Path) -> Callable[..., tuple[shard.Progress, list[Case]]]:
    """`fuzz_in` the test's own folder."""
    return partial(fuzz_in, tmp_path)


@pytest.fixture
def fuzz_apart(tmp_path: Path) -> Callable[..., shard.Progress]:
    """Fuzzes one shard in a process of its own, in which the interpreter computes every dtype."""

    def run(target: str, examples: int, **fields) -> shard.Progress:
        plan = FuzzPlan(**{"target": target, "device": "cpu", "examples": examples, "seed": 1, "folder": tmp_path, **fields})
        with shard.start_executor(plan) as executor:
            return shard.fuzz(plan, executor)

    return run


@pytest.fixture
def finds_fault(fuzz_apart: Callable[..., shard.Progress]) -> Callable[..., None]:
    """Asserts that so many examples of a target find a fault: another text at a place of its code."""

    def check(target: str, place: str, find: str, replace: str, *, examples: int, seed: int = 1) -> None:
        fault = Mutant(name="fault", patches=(Patch(place, find, replace),), raises="")
        progress = fuzz_apart(target, examples, seed=seed, mutant=fault, on_failure="stop")
        assert progress.failure is not None, f"survived {progress.examples} examples"

    return check


@pytest.fixture
def step_case() -> Case:
    """Two causal requests over three blocks of four slots: an extend of 2 tokens on 5, and a prefill of 3."""
    return Case(
        target="reference-fp32",
        head_size=8,
        requests=(
            Request(query_len=2, seq_len=7, blocks=(2, 0), causal=True),
            Request(query_len=3, seq_len=3, blocks=(3,), causal=True),
        ),
        cache=Cache(layout=Layout.KV_FIRST_NHD, block_size=4, num_blocks=4),
    )
