"""`attn-parity drift`: what changed for the targets of a package between two versions of its sources."""

import secrets
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from attn_fuzz import inputs
from attn_fuzz.errors import EXIT_LIMIT, InputError
from attn_fuzz.outputs import RUNS
from attn_parity.console import notes, results
from attn_parity.device import use_device
from attn_parity.files import check_writable, write_json
from attn_parity.options import Duration, Positive, Seed, device_option

if TYPE_CHECKING:
    from attn_parity.commands.drift.changes import Drift
    from attn_parity.commands.drift.sides import Side

SCHEMA = "attn-parity.drift/1"
EXAMPLES, MINUTES = 100, 60.0
SHARE = 0.7
"""The share of a target's time in which cases are drawn. In the rest its process starts and runs known findings again."""
_WORDS = {"failures": "FAILS: ", "still_failing": "still fails: ", "not_judged": "", "findings": "", "sources": ""}
"""The beginnings of lines about a field of a Change."""


@click.command("drift")
@click.argument("package")
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option(
    "--before",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="The folder to compare with; default: what the last call with this --json looked at.",
)
@click.option("--target", "names", multiple=True, help="A target; default: the interpreted targets of the package.")
@click.option("--examples", type=Positive, default=EXAMPLES, show_default=True, help="Cases to draw for each target.")
@click.option("--minutes", type=Duration, default=MINUTES, show_default=True, help="Minutes for all targets together.")
@click.option("--seed", type=Seed, help="The same seed draws the same cases; default: that of the last call, or a new one.")
@device_option
@click.option(
    "--json",
    "json_file",
    type=click.Path(dir_okay=False, path_type=Path),
    help=f"The file for the result, from which the next call goes on; default: {RUNS}/drift-PACKAGE.json.",
)
def command(
    package: str,
    folder: Path,
    before: Path | None,
    names: tuple[str, ...],
    examples: int,
    minutes: float,
    seed: int | None,
    device: str,
    json_file: Path | None,
) -> int:
    """Say what changed for the targets of PACKAGE, whose sources FOLDER holds: vllm, sglang, lmdeploy, aiter, or triton.

    It reports which targets load, which signatures and declarations changed, which findings are gone, and which targets fail
    now. The same command continues an interrupted call. Exit 1 if a target fails that did not, 3 if an adapter does not fit.
    """
    from attn_parity.commands.drift import changes, sides  # of the extra `fuzz`
    from attn_parity.commands.drift.changes import Drift
    from attn_parity.commands.drift.sides import Side

    file = json_file or RUNS / f"drift-{package}.json"
    RUNS.mkdir(exist_ok=True)
    check_writable(file)
    device = use_device(device)
    last = _last(file, package)
    if not (targets := names or tuple(sides.targets_of(package))):
        raise click.UsageError(f"--target: got none, expected one, as no target of {package} comes with this project")
    seed = seed if seed is not None else last["seed"] if last else secrets.randbelow(1 << 31)
    kept: list[Side] = [side for side in (last["before"], last["after"]) if side] if last else []
    if last and (last["seed"], last["examples"]) != (seed, examples):
        kept = [{**side, "ran": {}} for side in kept]
    after = sides.begun(package, folder, targets, device, kept)
    was = sides.begun(package, before, targets, device, kept) if before else None
    if was is None and last:
        was = last["before"] if last["after"]["digest"] == after["digest"] else last["after"]
    result = Drift(
        schema=SCHEMA, package=package, seed=seed, examples=examples, before=was, after=after, changes={}, interrupted=False
    )
    here = [was, after] if before and was else [after]
    waiting = [(side, name) for name in targets for side in here if _waits(side, name)]
    _run(result, waiting, 60 * minutes, device, file)
    earlier = was or sides.nothing_of(after)
    common = [name for name in targets if name in earlier["looks"]]
    result["changes"] = {name: changes.of_target(name, earlier, after, package) for name in common}
    write_json(file, result)
    return _report_changes(result, targets, file)


def _run(result: "Drift", waiting: Sequence[tuple["Side", str]], seconds: float, device: str, file: Path) -> None:
    """Run targets, each for a share of the time that is left, and write the result after each."""
    from attn_parity.commands.drift import sides

    until = time.monotonic() + seconds
    options = {"examples": result["examples"], "seed": result["seed"], "device": device}
    for left, (side, name) in zip(range(len(waiting), 0, -1), waiting, strict=True):
        share = SHARE * (until - time.monotonic()) / left
        place = RUNS / f"drift-{result['package']}" / side["digest"]
        place.mkdir(parents=True, exist_ok=True)
        ran = sides.fuzz(side, result["package"], name, options, share, place) if share > 0 else None
        if ran is None:
            result["interrupted"] = True
            return
        side["ran"][name] = ran
        notes.print(f"{name} in {side['folder']}: {ran['examples']} examples, {ran['seconds']:.0f} s")
        write_json(file, result)


def _waits(side: "Side", name: str) -> bool:
    return name not in side["ran"] and not side["looks"][name]["missing"]


def _last(file: Path, package: str) -> "Drift | None":
    """The result of the last call, or None."""
    if not file.is_file():
        return None
    from attn_parity.commands.drift.changes import Drift

    last = inputs.read_as(file, SCHEMA, Drift)
    if last["package"] != package:
        raise InputError(f"{file}: package: got {last['package']}, expected {package}")
    return last


def _report_changes(result: "Drift", targets: Sequence[str], file: Path) -> int:
    """Print what changed, and return the exit code."""
    found, quiet, absent = result["changes"], [], []
    for name in targets:
        change: Mapping[str, Any] = found.get(name, {})
        lines = [f"{words}{line}" for field, words in _WORDS.items() for line in change.get(field, ())]
        for line in lines:
            results.print(f"{name}: {line}")
        if not lines and not _waits(result["after"], name):
            (absent if result["after"]["looks"][name]["missing"] else quiet).append(name)
    if not result["before"]:
        results.print("nothing to compare with yet: the next call compares with these sources")
    elif quiet:
        results.print(f"unchanged: {', '.join(quiet)}")
    if absent:
        results.print(f"not run, as before: {', '.join(absent)}")
    if result["interrupted"]:
        waiting = ", ".join(name for name in targets if _waits(result["after"], name))
        results.print(f"not run yet: {waiting}; the same command goes on")
    results.print(f"{file}")
    if any(change["failures"] for change in found.values()):
        return 1
    if result["interrupted"]:
        return 130
    return EXIT_LIMIT if any(change["not_judged"] for change in found.values()) else 0
