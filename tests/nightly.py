"""The slow checks, in parts: `tox run -e nightly` runs the one that ended longest ago, `tox run -e nightly -- NAME` this one.

A part is a list of commands. Each that ends is noted, and an interrupted part goes on after the last of them. A part whose
commands need more than its minutes has failed. docs/generated/nightly.json and the table of tests/README.md say how each part
ended, and, by hand, why one failed.

A part is green if it passed at a commit after which no file that it runs was changed, and red otherwise. `tox run` ends with
`nightly.py --red`, which names each part that is red, or whose run is older than 14 days.
"""

import datetime
import json
import os
import shlex
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "docs" / "generated" / "nightly.json"
PAGE = ROOT / "tests" / "README.md"
NOTES = ROOT / "attn-parity-runs"
MAX_DAYS = 14
THIRDS = 3
BEGIN, END = "<!-- nightly -->\n", "<!-- end of nightly -->\n"
ENGINE = ("llama", "mistral", "gemma2", "gemma3", "gpt_oss", "qwen3_moe", "glm4", "cohere2", "gemma3n", "smollm3")
KERNELS = ("contract", "optimized", "pyproject.toml", "tests/nightly.py")
"""The files of all parts: what is checked, the packages that are installed with it, and the commands."""
FUZZER = (*KERNELS, "reference", "emulated", "fuzz", "cli")
LAUNCHES = (*FUZZER, "binaries", "lab/attn_lab/__main__.py", "lab/attn_lab/binaries", "lab/attn_lab/commands/binaries.py")
ZOO = (*FUZZER, "lab")
FAULTS = (*ZOO, "binaries", "plugins", *(f"tests/{name}" for name in ("cli", "fuzz", "plugins", "support", "conftest.py")))
PAGES = ("README.md", "docs/guide", "docs/reference")
TESTS = (*ZOO, "binaries", "plugins", "benchmarks", "examples", "findings", *PAGES, "tests", ":!tests/README.md")


@dataclass(frozen=True)
class Part:
    """
    Attributes:
        commands: makes the commands, given how the part ended last, as nightly.json has it.
        checks: what they check.
        minutes: how long all of them may take on two cores.
        paths: the files that they run, as git's pathspecs. A change of one makes the part red.
    """

    commands: Callable[[dict[str, Any]], Iterator[str]]
    checks: str
    minutes: int
    paths: tuple[str, ...]


def _tests(last: dict[str, Any]) -> Iterator[str]:
    yield "pytest -n 2 -m nightly --ignore tests/fuzz"
    yield "pytest -n 2 -m nightly tests/fuzz"
    for name in ENGINE:
        yield f"python -m tests.plugins.engine {name}"


def next_third(last: dict[str, Any]) -> int:
    """The third of the zoo that ran longest ago: the one after the last one that ran, from 0."""
    return (last.get("third", -1) + 1) % THIRDS


def _zoo(last: dict[str, Any]) -> Iterator[str]:
    """Run twenty mutants at a time: `--write` keeps the results of the others."""
    names = sorted(path.stem for path in (ROOT / "lab/attn_lab/zoo/bugs").glob("*.toml"))[next_third(last) :: THIRDS]
    for first in range(0, len(names), 20):
        yield "python -m attn_lab zoo run --write " + " ".join(f"--only {name}" for name in names[first : first + 20])
    yield "python -m attn_lab zoo page"


def _fuzz(last: dict[str, Any]) -> Iterator[str]:
    yield "pytest -n 2 fuzz --attn-target all"
    yield "attn-parity fuzz --exact --target triton --examples 100"
    yield "attn-parity fuzz --exact --target triton-cascade --examples 30"


def _faults(last: dict[str, Any]) -> Iterator[str]:
    tests = "pytest --timeout 0"
    for first in range(0, 200, 100):
        yield f"{tests} tests/cli/test_malformed.py --malformed {first}:{first + 100}"
    for first in range(0, 100, 20):
        yield f"{tests} tests/fuzz/run/test_storm.py -m nightly --kills {first}:{first + 20}"
    yield f"{tests} tests/plugins/test_recording_summary.py -k malformed --malformed 0:200"


def _architectures() -> tuple[str, ...]:
    from attn_fuzz.targets.of_architecture import ARCHITECTURES  # imports torch, which `--red` need not wait for

    return tuple(ARCHITECTURES)


def _launches(last: dict[str, Any]) -> Iterator[str]:
    yield "python -m attn_lab binaries compile --arch sm90"
    for architecture in _architectures():
        yield f"python -m attn_lab binaries run --arch {architecture}"


def _drawn(last: dict[str, Any]) -> Iterator[str]:
    for architecture in _architectures():
        examples = 100 if architecture == "gfx942" else 30
        yield f"attn-parity fuzz --target triton@{architecture} --examples {examples} --corpus none"
    yield f"python -m attn_lab binaries drawn 60 --arch {','.join((*_architectures(), 'sm90'))}"


PARTS = {
    "tests": Part(
        _tests,
        "tests marked `nightly`, and continuous batching of ten models, 500 requests each: recordings find nothing",
        60,
        TESTS,
    ),
    "zoo": Part(_zoo, "a third of the zoo's mutants by one seed, each night the next third", 60, ZOO),
    "fuzz": Part(_fuzz, "the battery of each target, and a share of it in exact arithmetic", 60, (*FUZZER, "plugins")),
    "faults": Part(_faults, "200 malformed files, 100 kills of the processes of runs, and 20 Ctrl-C", 40, FAULTS),
    "launches": Part(
        _launches, "every launch that ships, compiled and compared with budgets; AMD's run on the emulator", 80, LAUNCHES
    ),
    "drawn": Part(_drawn, "drawn cases on every emulated architecture; launches of drawn steps, compiled", 60, LAUNCHES),
}
"""The parts by name: at most six, of at most six hours together."""


def oldest(results: dict[str, Any]) -> str:
    """The part that ended longest ago; one that never did comes first."""
    return min(PARTS, key=lambda name: results.get(name, {}).get("ended", ""))


def red(results: dict[str, Any], today: datetime.date, root: Path = ROOT) -> Iterator[str]:
    """A line for each part that is red or old; none where git has no history."""
    for name, part in PARTS.items() if has_history(root) else ():
        if why := _why_red(results.get(name, {}), part, today, root):
            yield f"nightly part {name}: {why}"


def _why_red(ended: dict[str, Any], part: Part, today: datetime.date, root: Path) -> str:
    """Why a part is red or old; empty if it is neither."""
    if "ended" not in ended:
        return "red, has not run"
    if ended["result"] != "passed":
        return f"red, {ended['result']}"
    begun = ended["commit"].partition("..")[0]
    try:
        changed = git(root, "diff", "--name-only", begun, "--", *part.paths).splitlines()
    except subprocess.CalledProcessError:
        return f"red, it passed at {begun}, which this history has not"
    if changed:
        return f"red, {len(changed)} of its files changed after {begun}, at which it passed"
    days = (today - datetime.date.fromisoformat(ended["ended"][:10])).days
    return f"green, and {days} days old" if days > MAX_DAYS else ""


def git(root: Path, *arguments: str) -> str:
    """What git prints in a folder.

    Raises:
        OSError, CalledProcessError: there is no git, or it refuses.
    """
    return subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, check=True).stdout.strip()


def has_history(root: Path) -> bool:
    """False where there is no git, in a shallow clone, and in a source distribution, which may lie in another repository."""
    try:
        top, is_shallow = git(root, "rev-parse", "--show-toplevel", "--is-shallow-repository").splitlines()
    except (OSError, subprocess.CalledProcessError):
        return False
    return is_shallow == "false" and Path(top).resolve() == root.resolve()


def run(name: str, commands: list[str], folder: Path, seconds: float) -> dict[str, Any] | None:
    """Run those of a part's commands that have not ended before.

    Args:
        folder: of the notes of what ended.
        seconds: what all commands may take, those that ended before included.

    Returns:
        How it ended, or None if it was interrupted.
    """
    note, commit = folder / f"nightly-{name}.json", git(ROOT, "rev-parse", "--short=8", "HEAD")
    noted = json.loads(note.read_text()) if note.exists() else {"commit": commit, "seconds": 0.0, "codes": {}}
    in_time = True
    for command in commands:
        if command in noted["codes"]:
            continue
        begun = time.monotonic()
        try:
            noted["codes"][command] = _ended(command, seconds - noted["seconds"])
        except subprocess.TimeoutExpired:
            in_time = False
            break
        except KeyboardInterrupt:
            print(f"{name}: interrupted, {len(noted['codes'])} of {len(commands)} commands ended; the next call goes on")
            return None
        finally:
            noted["seconds"] += time.monotonic() - begun
            folder.mkdir(exist_ok=True)
            note.write_text(json.dumps(noted))
    note.unlink(missing_ok=True)
    return {
        "ended": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M"),
        "commit": commit if commit == noted["commit"] else f"{noted['commit']}..{commit}",
        "minutes": round(noted["seconds"] / 60),
        "result": "; ".join(_faults_of(commands, noted["codes"], seconds, in_time)) or "passed",
    }


def _faults_of(commands: list[str], codes: dict[str, int], seconds: float, in_time: bool) -> Iterator[str]:
    if failed := [command for command in commands if codes.get(command)]:
        yield f"{len(failed)} of {len(commands)} commands failed: {'; '.join(_short(failed, commands))}"
    if not in_time:
        yield f"{len(codes)} of {len(commands)} commands ended within {seconds / 60:.0f} minutes"


def _short(failed: list[str], commands: list[str]) -> Iterator[str]:
    """Of each failed command the words that not all of a part's commands have, or all words of a part's only command."""
    common = set.intersection(*(set(command.split()) for command in commands)) if len(commands) > 1 else set()
    for command in failed:
        yield textwrap.shorten(" ".join(word for word in command.split() if word not in common), 80)


def _heed_interrupts() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def _ended(command: str, seconds: float) -> int:
    """The exit code of a command.

    Raises:
        TimeoutExpired, KeyboardInterrupt: it was interrupted, and has ended.
    """
    print(f"$ {command}", flush=True)
    # whoever starts this program in the background makes it and its children ignore SIGINT
    process = subprocess.Popen(shlex.split(command), cwd=ROOT, process_group=0, preexec_fn=_heed_interrupts)
    try:
        return process.wait(max(seconds, 0))
    except (subprocess.TimeoutExpired, KeyboardInterrupt):
        os.killpg(process.pid, signal.SIGINT)
        process.wait()
        raise


def table(results: dict[str, Any]) -> str:
    columns = ("ended", "commit", "minutes", "result", "why")
    lines = ["| part | checks | ended (UTC) | commit | minutes | result | why |", "|---|---|---|---|--:|---|---|"]
    for name, part in PARTS.items():
        ended = {"ended": "never", **results.get(name, {})}
        lines.append(f"| `{name}` | {part.checks} | {' | '.join(str(ended.get(column, '')) for column in columns)} |")
    return "\n".join(lines) + "\n"


def page(text: str, results: dict[str, Any]) -> str:
    """The page with the table of these results between its marks."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return before + BEGIN + table(results) + END + after


def main(arguments: list[str]) -> int:
    results = json.loads(RESULTS.read_text())
    if arguments == ["--red"]:
        for line in red(results, datetime.datetime.now(datetime.UTC).date()):
            print(line)
        return 0
    name = arguments[0] if arguments else oldest(results)
    if name not in PARTS or len(arguments) > 1:
        print(f"got {' '.join(arguments)}, expected one of {', '.join(PARTS)}", file=sys.stderr)
        return 2
    part, last = PARTS[name], results.get(name, {})
    ended = run(name, [*part.commands(last)], NOTES, part.minutes * 60)
    if ended is None:
        return 130
    if name == "zoo":
        ended["third"] = next_third(last)
    results[name] = ended
    RESULTS.write_text(json.dumps(results, indent=2, sort_keys=True) + "\n")
    PAGE.write_text(page(PAGE.read_text(), results))
    return 0 if ended["result"] == "passed" else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
