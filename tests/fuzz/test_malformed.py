"""Malformed files, drawn from a seed, to every command that reads one: one line, exit 2, within 2 s and 64 MiB of its own.

Importing torch takes the rest of the 300 MB that a command may have. Each input is read by a fork of this process, in which
everything is imported already. `--malformed N` draws N inputs; `tox run -e faults` draws 500.
"""

import contextlib
import json
import os
import random
import re
import resource
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import attn_parity.binaries.budgets as budgets
import attn_parity.compile
import attn_parity.emulate
import attn_parity.matrix
import attn_parity.mutate
import attn_parity.replay
import attn_parity.select
import attn_parity.show
import attn_parity.ways
import attn_parity.zoo  # noqa: F401
import pytest
from attn_fuzz.targets import registry
from attn_parity import main

ROOT = Path(__file__).parents[2]
NOTE = "no GPU in use: Triton interprets the kernels on the CPU"
SECONDS, MEBIBYTES = 2.0, 64
LONG = "9" * 5000
DEEP = "[" * 3000 + "]" * 3000


class Reader(NamedTuple):
    """A command that reads a file.

    Attributes:
        arguments: of the command, with {} for the file.
        valid: a file that it would take.
        name: of the malformed file.
        takes_unknown_fields: whether fields of other versions are left alone.
        beside: a file that has to be there, too.
        says_anything: whether any value of a field is an answer, as in a model's config, whose other fields are not read.
    """

    arguments: str
    valid: Path
    name: str
    takes_unknown_fields: bool = False
    beside: Path | None = None
    says_anything: bool = False


CASE = ROOT / "fuzz/attn_fuzz/corpus/vllm-945.json"
MUTANT = ROOT / "fuzz/attn_fuzz/zoo/vllm-945.toml"
PAGES = ROOT / "docs/generated"
JSON_READERS = (
    Reader("replay {}", CASE, "case.json"),
    Reader("show --no-run {}", CASE, "case.json"),
    Reader("fuzz --target reference-fp32 --corpus {}", CASE, "case.json"),
    Reader("select {}", ROOT / "examples/models/gpt-oss-120b.json", "model.json"),
    Reader("select {}", ROOT / "tests/fuzz/configs/gpt-oss-120b.json", "config.json", says_anything=True),
    Reader("emulate {}", CASE, "launches.json", takes_unknown_fields=True),
    Reader("zoo --check --page zoo.md", PAGES / "zoo.json", "zoo.json", takes_unknown_fields=True),
    Reader("mutate --check --page mutants.md", PAGES / "mutants.json", "mutants.json", takes_unknown_fields=True),
    Reader("ways --take {}", PAGES / "zoo-ways.json", "ways.json", takes_unknown_fields=True),
)
TOML_READERS = (
    Reader("zoo --dir zoo", MUTANT, "zoo/mutant.toml"),
    Reader("compile --arch gfx942 --only nothing --budgets {}", budgets.SHIPPED, "budgets.toml"),
)
CSV_READERS = (
    Reader("compile --check --page binaries.md", PAGES / "binaries.csv", "binaries.csv", beside=PAGES / "binaries.md"),
)

Draw = Callable[[random.Random, str], bytes]


def _cut(rng: random.Random, text: str) -> bytes:
    text = text.strip()
    return text[: rng.randrange(len(text))].encode()


def _with_bytes(rng: random.Random, text: str) -> bytes:
    at = rng.randrange(len(text))
    bad = rng.choice((b"\xff", b"\x00", b"\xc3(", b"\x1b[2J\x80", bytes(range(128, 256))))
    return text[:at].encode() + bad + text[at:].encode()


def _garbage(rng: random.Random, text: str) -> bytes:
    return rng.choice((b"", b"\0" * 64, b"\x1b]0;x\x07", rng.randbytes(200), b"[" * (1 << 19), b"[]," * (1 << 18), b"{" * 2000))


def _json_value(rng: random.Random, text: str) -> bytes:
    """Some value becomes one that stands nowhere in any of these files."""
    content = json.loads(text)
    places = [*_places(content)]
    holder, key = rng.choice(places)
    holder[key] = "@@"
    bad = rng.choice(('{"\\u001b[2J": []}', "NaN", "-Infinity", "1e999", LONG, f"-{LONG}", DEEP, '[[[[{"a": [[]]}]]]]'))
    return json.dumps(content).replace('"@@"', bad).encode()


def _json_no_number(rng: random.Random, text: str) -> bytes:
    """Some value becomes what is not JSON, or is beyond what any reader takes."""
    content = json.loads(text)
    holder, key = rng.choice([*_places(content)])
    holder[key] = "@@"
    return json.dumps(content).replace('"@@"', rng.choice(("NaN", "-Infinity", "1e999", LONG, f"-{LONG}", DEEP))).encode()


def _json_duplicate(rng: random.Random, text: str) -> bytes:
    """Some object has one of its fields twice."""
    content = json.loads(text)
    objects = [content, *(held for holder, key in _places(content) if isinstance(held := holder[key], dict) and held)]
    chosen = rng.choice(objects)
    name = rng.choice([*chosen])
    chosen["@@"] = chosen[name]
    return json.dumps(content).replace('"@@"', json.dumps(name)).encode()


def _json_unknown(rng: random.Random, text: str) -> bytes:
    content = json.loads(text)
    content[rng.choice(("\x1b[31mred", "x" * 100_000, "", "architectures"))] = rng.choice((1, None, [], "text"))
    return json.dumps(content).encode()


def _json_without(rng: random.Random, text: str) -> bytes:
    content = json.loads(text)
    del content["schema"]
    return rng.choice((json.dumps(content), json.dumps([content]), json.dumps("text"), "null", "3", "[]", "{}")).encode()


def _places(value: Any) -> list[tuple[Any, Any]]:
    keys = [*value] if isinstance(value, dict) else [*range(len(value))] if isinstance(value, list) else []
    return [place for key in keys for place in ((value, key), *_places(value[key]))]


def _toml_value(rng: random.Random, text: str) -> bytes:
    lines = text.splitlines()
    at = rng.choice([i for i, line in enumerate(lines) if re.match(r"[\w\" ,.-]+ = ", line) and '"""' not in line])
    name, _, _ = lines[at].partition(" = ")
    bad = rng.choice(("nan", "-inf", LONG, DEEP, "[]", '[{a = "\\u001b"}]', "1979-05-27", "{}", "{x = [1]}", "true"))
    lines[at] = f"{name} = {bad}"
    return "\n".join(lines).encode()


def _toml_duplicate(rng: random.Random, text: str) -> bytes:
    lines = text.splitlines()
    at = rng.choice([i for i, line in enumerate(lines) if re.match(r"\w+ = \S+.*[^\[,]$", line) and '"""' not in line])
    return "\n".join([*lines[: at + 1], lines[at], *lines[at + 1 :]]).encode()


def _toml_unknown(rng: random.Random, text: str) -> bytes:
    name = rng.choice(('"\\u001b[31m"', "x" * 100_000, '""', ".".join("a" * 2000), "[" * 100))
    return f"{name} = 1\n{text}".encode()


def _csv_cells(rng: random.Random, text: str) -> bytes:
    head, *lines = text.splitlines()
    at = rng.randrange(len(lines))
    cells = lines[at].split(",")
    cells[rng.randrange(4, len(cells))] = rng.choice(("many", "\x1b[2J", "9" * 5000, '"' + "x" * 200_000 + '"'))
    lines[at] = rng.choice((",".join(cells), lines[at] + ",1"))
    return "\n".join([head.replace("launch", "lunch"), *lines] if rng.random() < 0.2 else [head, *lines]).encode()


JSON_DRAWS = (_cut, _with_bytes, _garbage, _json_value, _json_value, _json_value, _json_duplicate, _json_unknown, _json_without)
CONFIG_DRAWS = (_cut, _with_bytes, _garbage, _json_no_number, _json_duplicate)
TOML_DRAWS = (_with_bytes, _toml_value, _toml_value, _toml_duplicate, _toml_unknown)
CSV_DRAWS = (_with_bytes, _csv_cells)
FILES = ("pipe", "endless", "folder", "nowhere", "loop", "huge", "missing")


def draw(seed: int, folder: Path) -> str:
    """Make a malformed file in the folder, and return the command that reads it."""
    rng = random.Random(seed)
    readers, draws = rng.choice(((JSON_READERS, JSON_DRAWS), (TOML_READERS, TOML_DRAWS), (CSV_READERS, CSV_DRAWS)))
    reader = rng.choice(readers)
    path = folder / reader.name
    path.parent.mkdir(exist_ok=True)
    if reader.beside is not None:
        (path.parent / reader.beside.name).write_bytes(reader.beside.read_bytes())
    if rng.random() < 0.15:
        _make_no_file(path, rng.choice(FILES))
    else:
        draws = CONFIG_DRAWS if reader.says_anything else draws
        usable = [one for one in draws if not (reader.takes_unknown_fields and one is _json_unknown)]
        text = reader.valid.read_text()
        path.write_bytes(rng.choice(usable)(rng, text))
    return reader.arguments.format(reader.name)


def _make_no_file(path: Path, kind: str) -> None:
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "huge":
        with path.open("wb") as file:
            file.truncate(1 << 40)
    elif kind != "missing":
        path.symlink_to({"endless": "/dev/zero", "nowhere": "nowhere", "loop": path.name}[kind])


class Ended(NamedTuple):
    code: int
    out: str
    err: str
    seconds: float
    mebibytes: float


def run_in_fork(arguments: list[str], folder: Path) -> Ended:
    """Run the command in a fork of this process. The seconds are those of the CPU: other tests may run beside this one."""
    out, err = folder / "out", folder / "err"
    before = int(re.search(r"VmRSS:\s+(\d+)", Path("/proc/self/status").read_text())[1])  # pyright: ignore[reportOptionalSubscript]
    pid = os.fork()
    if pid == 0:
        code = 70
        try:
            signal.alarm(600)  # for what waits for ever: a busy machine may take long for the 2 s of the CPU
            for stream, path in ((1, out), (2, err)):
                os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), stream)
            sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
            os.chdir(folder)
            main(arguments)
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 71
        except BaseException:
            sys.excepthook(*sys.exc_info())
        finally:
            with contextlib.suppress(Exception):
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(code)
    _, status, used = os.wait4(pid, 0)
    texts = [path.read_text(errors="replace") for path in (out, err)]
    seconds = used.ru_utime + used.ru_stime
    return Ended(os.waitstatus_to_exitcode(status), *texts, seconds, (used.ru_maxrss - before) / 1024)


@pytest.fixture(scope="module", autouse=True)
def warm():
    """Imported and loaded before the first fork."""
    registry.usable("reference-fp32", "cpu")
    resource.getrusage(resource.RUSAGE_SELF)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc")
def test_a_malformed_file_is_refused_in_one_line(tmp_path, request):
    wrong = []
    for seed in range(request.config.getoption("--malformed")):
        folder = tmp_path / str(seed)
        folder.mkdir()
        arguments = draw(seed, folder)
        ended = run_in_fork(arguments.split(), folder)
        lines = [line for line in ended.err.splitlines() if line and line != NOTE]
        is_one = len(lines) == 1 and lines[0].startswith("attn-parity: ") and lines[0].isprintable() and len(lines[0]) < 2000
        if ended.code != 2 or ended.out or not is_one:
            wrong.append(f"{seed}: {arguments}: exit {ended.code}, {ended.out[:200]!r}, {ended.err[-600:]!r}")
        if ended.seconds > SECONDS or ended.mebibytes > MEBIBYTES:
            wrong.append(f"{seed}: {arguments}: {ended.seconds:.1f} s, {ended.mebibytes:.0f} MiB")
    assert not wrong, "\n".join(wrong)
