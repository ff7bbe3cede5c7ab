"""A side of a comparison: a folder of a package's sources, what targets find in them, and what a short run of each shows."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict

from attn_fuzz.errors import InputError
from attn_fuzz.foreign.loading import variable
from attn_fuzz.targets import registry
from attn_fuzz.text import one_line
from attn_parity.adapters import TRITON
from attn_parity.commands.drift.look import Look

ENDS_WITHIN = 60.0
"""Seconds in which a run ends that was told to stop drawing: it makes a failure small, and asks for each known finding."""


class Failed(TypedDict):
    """A failure that `attn-parity fuzz` reports. `case_file` is its smallest case."""

    kind: str
    message: str
    case_file: str | None


class Ran(TypedDict):
    """A run of `attn-parity fuzz`: cases by known finding, findings whose stored case no longer fails, and failures.

    `limits` counts by limit of this tool the cases that it could not run. `error` says why there was no run. An interrupted run
    did not ask for known findings.
    """

    examples: int
    seconds: float
    known: dict[str, int]
    no_longer_failing: list[str]
    limits: dict[str, int]
    failures: list[Failed]
    error: str | None
    interrupted: bool


class Side(TypedDict):
    """The sources in a folder: their digest, and by target what was looked at and what ran. A target without `ran` waits."""

    folder: str
    digest: str
    looks: dict[str, Look]
    ran: dict[str, Ran]


def begun(package: str, folder: Path, names: Sequence[str], device: str, kept: Sequence[Side]) -> Side:
    """A side that was looked at, with what ran on the same sources in an earlier call. What ran no example waits again.

    Raises:
        InputError: the folder does not hold the package, or the process that looks says nothing.
    """
    side: Side = {"folder": str(folder), "digest": _digest(package, folder), "looks": {}, "ran": {}}
    for earlier in (each for each in kept if each["digest"] == side["digest"]):
        side["ran"] |= {name: ran for name, ran in earlier["ran"].items() if ran["examples"] or ran["failures"]}
    side["looks"] = _look(side, package, names, device)
    return side


def nothing_of(side: Side) -> Side:
    """The side that a first call compares with: the same sources, where every target loads and none has run."""
    return {**side, "ran": {}, "looks": {name: {**look, "missing": None} for name, look in side["looks"].items()}}


def _digest(package: str, folder: Path) -> str:
    if not (folder / package).is_dir():
        raise InputError(f"got {folder}, expected a folder that holds a folder {package}")
    digest = hashlib.sha256()
    for path in sorted((folder / package).rglob("*")):
        if path.is_file() and path.suffix in (".py", ".json", ".so", ".co", ".cuh", ".h"):
            digest.update(f"{path.relative_to(folder)}\0{path.stat().st_size}\0".encode())
            digest.update(path.read_bytes() if path.suffix in (".py", ".json") else b"")
    return digest.hexdigest()[:16]


def targets_of(package: str) -> list[str]:
    """The targets of a package that are interpreted; of Triton, this project's own."""
    known = registry.packages()
    if package == TRITON:
        return [name for name in registry.ours() if not name.startswith(("reference", "transformers"))]
    return [*known[package].attributes] if package in known else []


def is_pinned(package: str, folder: Path) -> bool:
    """True if a folder has the release whose lines this project's adapters cite."""
    found = registry.packages().get(package)
    name = found and f"{found.requirement.replace('-', '_').replace('==', '-')}.dist-info"
    return bool(name and (folder / name).is_dir())


def _look(side: Side, package: str, names: Sequence[str], device: str) -> dict[str, Look]:
    pinned = "pinned" if is_pinned(package, Path(side["folder"])) else "other"
    module = [sys.executable, "-m", "attn_parity.commands.drift.look", package, device, pinned, *names]
    done = subprocess.run(module, capture_output=True, text=True, env=_environment(side, package, device))
    if done.returncode:
        raise InputError(f"{side['folder']}: {_last_line(done.stderr)}")
    return json.loads(done.stdout.splitlines()[-1])


def fuzz(side: Side, package: str, name: str, options: Mapping[str, object], seconds: float, folder: Path) -> Ran | None:
    """Run `attn-parity fuzz`, and return what it says; None if it was interrupted.

    Args:
        options: the options of `fuzz`.
        seconds: after which it stops drawing.
        folder: for failing cases.
    """
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch, "fuzz.json")
        words = {"target": name, "json": file, "report": folder, "corpus": "none", "minutes": seconds / 60, **options}
        command = [sys.executable, "-m", "attn_parity", "fuzz", *(w for k, v in words.items() for w in (f"--{k}", str(v)))]
        log = Path(scratch, "log")
        with log.open("w") as output:
            process = subprocess.Popen(
                command, stdout=output, stderr=output, env=_environment(side, package, str(options["device"])), process_group=0
            )
            try:
                code = process.wait(seconds + ENDS_WITHIN)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGINT)
                code = process.wait()
            except KeyboardInterrupt:
                os.killpg(process.pid, signal.SIGINT)
                process.wait()
                return None
        if not file.is_file():
            error = f"fuzz ended with {code}: {_last_line(log.read_text(errors='replace'))}"
            return Ran(
                examples=0, seconds=0.0, known={}, no_longer_failing=[], limits={}, failures=[], error=error, interrupted=False
            )
        found = json.loads(file.read_bytes())
    found["failures"] = [{key: failure[key] for key in Failed.__annotations__} for failure in found["failures"]]
    kept: Any = {key: found[key] for key in Ran.__annotations__}
    return kept


def _environment(side: Side, package: str, device: str) -> dict[str, str]:
    """The variables of a process that finds the package in the side's folder."""
    folder, path = str(Path(side["folder"]).absolute()), os.environ.get("PYTHONPATH", "")
    own = {"PYTHONPATH": f"{folder}{os.pathsep}{path}"} if package == TRITON else {variable(package): folder}
    return os.environ | own | ({"TRITON_INTERPRET": "1"} if device == "cpu" else {})


def _last_line(text: str) -> str:
    return one_line((text.strip().splitlines() or ["it printed nothing"])[-1], 300)
