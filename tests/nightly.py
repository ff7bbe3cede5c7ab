"""The slow checks, in parts: `tox run -e nightly` runs the one that ended longest ago, `tox run -e nightly -- NAME` this one.

A part is a list of commands. Each that ends is noted, and an interrupted part goes on after the last of them. After 150 minutes
the running command is interrupted, too. docs/generated/nightly.json and the table of tests/README.md say how each part ended,
and, by hand, why one failed.
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
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from attn_fuzz.targets.of_architecture import ARCHITECTURES

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "docs" / "generated" / "nightly.json"
PAGE = ROOT / "tests" / "README.md"
NOTES = ROOT / "attn-parity-runs"
MAX_SECONDS = 150 * 60
BEGIN, END = "<!-- nightly -->\n", "<!-- end of nightly -->\n"
ENGINE = ("llama", "mistral", "gemma2", "gemma3", "gpt_oss", "qwen3_moe", "glm4", "cohere2", "gemma3n", "smollm3")


def _tests() -> Iterator[str]:
    yield "pytest -n 2 -m nightly --ignore tests/fuzz"
    yield "pytest -n 2 -m nightly tests/fuzz"


def _zoo() -> Iterator[str]:
    """Run twenty mutants at a time: `--write` keeps the results of the others."""
    names = sorted(path.stem for path in (ROOT / "lab/attn_lab/zoo/bugs").glob("*.toml"))
    for first in range(0, len(names), 20):
        yield "python -m attn_lab zoo run --seeds 3 --write " + " ".join(f"--only {name}" for name in names[first : first + 20])
    yield "python -m attn_lab zoo page"


def _fuzz() -> Iterator[str]:
    yield "pytest -n 2 fuzz --attn-target all"
    yield "attn-parity fuzz --exact --target triton --examples 100"
    yield "attn-parity fuzz --exact --target triton-cascade --examples 30"


def _faults() -> Iterator[str]:
    tests = "pytest --timeout 0"
    for first in range(0, 500, 100):
        yield f"{tests} tests/cli/test_malformed.py --malformed {first}:{first + 100}"
    for first in range(0, 200, 20):
        yield f"{tests} tests/fuzz/run/test_storm.py -m nightly --kills {first}:{first + 20}"
    yield f"{tests} tests/plugins/test_recording_summary.py -k malformed --malformed 0:500"


def _engine() -> Iterator[str]:
    for name in ENGINE:
        yield f"python -m tests.plugins.engine {name}"


def _launches() -> Iterator[str]:
    yield "python -m attn_lab binaries compile"
    yield "python -m attn_lab binaries drawn 60 --arch gfx942,gfx1201,sm90"


def _emulated() -> Iterator[str]:
    for architecture in ARCHITECTURES:
        yield f"python -m attn_lab binaries run --arch {architecture}"


def _emulated_drawn() -> Iterator[str]:
    for architecture in ARCHITECTURES:
        examples = 300 if architecture == "gfx942" else 100
        yield f"attn-parity fuzz --target triton@{architecture} --examples {examples} --corpus none"
    yield f"python -m attn_lab binaries drawn 60 --arch {','.join(ARCHITECTURES)}"


PARTS = {
    "tests": (_tests, "tests marked `nightly`: whole commands, long draws, faults planted in kernels, clusters, storms"),
    "zoo": (_zoo, "every mutant of the zoo by three seeds"),
    "fuzz": (_fuzz, "the battery of each target, and a share of it in exact arithmetic"),
    "faults": (_faults, "500 malformed files, 200 kills of the processes of runs, and 40 Ctrl-C"),
    "engine": (_engine, "continuous batching of ten models, 500 requests each: recordings find nothing"),
    "launches": (_launches, "every launch that ships, compiled and compared with budgets"),
    "emulated": (_emulated, "every launch that ships for AMD, run on the emulator"),
    "emulated-drawn": (_emulated_drawn, "drawn cases on every emulated architecture"),
}
"""The commands of each part, and what they check, by name."""


def oldest(results: dict[str, Any]) -> str:
    """The part that ended longest ago; one that never did comes first."""
    return min(PARTS, key=lambda name: results.get(name, {}).get("ended", ""))


def run(name: str, commands: list[str], folder: Path, seconds: float) -> dict[str, Any] | None:
    """Run those of a part's commands that have not ended before.

    Args:
        folder: of the notes of what ended.
        seconds: after which the part is interrupted.

    Returns:
        How it ended, or None if it was interrupted.
    """
    note, deadline, commit = folder / f"nightly-{name}.json", time.monotonic() + seconds, _commit()
    noted = json.loads(note.read_text()) if note.exists() else {"commit": commit, "seconds": 0.0, "codes": {}}
    for command in commands:
        if command in noted["codes"]:
            continue
        begun = time.monotonic()
        code = _ended(command, deadline - begun)
        noted["seconds"] += time.monotonic() - begun
        if code is not None:
            noted["codes"][command] = code
        folder.mkdir(exist_ok=True)
        note.write_text(json.dumps(noted))
        if code is None:
            print(f"{name}: interrupted, {len(noted['codes'])} of {len(commands)} commands ended; the next call goes on")
            return None
    note.unlink()
    failed = [command for command in commands if noted["codes"][command]]
    return {
        "ended": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M"),
        "commit": commit if commit == noted["commit"] else f"{noted['commit']}..{commit}",
        "minutes": round(noted["seconds"] / 60),
        "result": "passed"
        if not failed
        else f"{len(failed)} of {len(commands)} commands failed: {'; '.join(_short(failed, commands))}",
    }


def _short(failed: list[str], commands: list[str]) -> Iterator[str]:
    """Of each failed command the words that not all of a part's commands have, or all words of a part's only command."""
    common = set.intersection(*(set(command.split()) for command in commands)) if len(commands) > 1 else set()
    for command in failed:
        yield textwrap.shorten(" ".join(word for word in command.split() if word not in common), 80)


def _heed_interrupts() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def _ended(command: str, seconds: float) -> int | None:
    """The exit code of a command, or None if it was interrupted."""
    print(f"$ {command}", flush=True)
    # whoever starts this program in the background makes it and its children ignore SIGINT
    process = subprocess.Popen(shlex.split(command), cwd=ROOT, process_group=0, preexec_fn=_heed_interrupts)
    try:
        return process.wait(max(seconds, 0))
    except (subprocess.TimeoutExpired, KeyboardInterrupt):
        os.killpg(process.pid, signal.SIGINT)
        process.wait()
        return None


def _commit() -> str:
    return subprocess.check_output(["git", "rev-parse", "--short=8", "HEAD"], cwd=ROOT, text=True).strip()


def table(results: dict[str, Any]) -> str:
    columns = ("ended", "commit", "minutes", "result", "why")
    lines = ["| part | checks | ended (UTC) | commit | minutes | result | why |", "|---|---|---|---|--:|---|---|"]
    for name, (_, checks) in PARTS.items():
        ended = results.get(name, {"ended": "never"})
        lines.append(f"| `{name}` | {checks} | {' | '.join(str(ended.get(column, '')) for column in columns)} |")
    return "\n".join(lines) + "\n"


def page(text: str, results: dict[str, Any]) -> str:
    """The page with the table of these results between its marks."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return before + BEGIN + table(results) + END + after


def main(arguments: list[str]) -> int:
    results = json.loads(RESULTS.read_text())
    name = arguments[0] if arguments else oldest(results)
    if name not in PARTS or len(arguments) > 1:
        print(f"got {' '.join(arguments)}, expected one of {', '.join(PARTS)}", file=sys.stderr)
        return 2
    ended = run(name, [*PARTS[name][0]()], NOTES, MAX_SECONDS)
    if ended is None:
        return 130
    results[name] = ended
    RESULTS.write_text(json.dumps(results, indent=2, sort_keys=True) + "\n")
    PAGE.write_text(page(PAGE.read_text(), results))
    return 0 if ended["result"] == "passed" else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
