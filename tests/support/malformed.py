"""Malformed files, drawn from a seed, and commands that read them in forks of this process."""

import contextlib
import json
import os
import random
import re
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

SECONDS, MEBIBYTES = 2.0, 64
"""The time of the CPU, and the memory beyond that of this process, that a command may take to refuse a file."""
LONG = "9" * 5000
DEEP = "[" * 3000 + "]" * 3000

Draw = Callable[[random.Random, str], bytes]


def cut(rng: random.Random, text: str) -> bytes:
    text = text.strip()
    return text[: rng.randrange(len(text))].encode()


def with_bytes(rng: random.Random, text: str) -> bytes:
    at = rng.randrange(len(text))
    bad = rng.choice((b"\xff", b"\x00", b"\xc3(", b"\x1b[2J\x80", bytes(range(128, 256))))
    return text[:at].encode() + bad + text[at:].encode()


def garbage(rng: random.Random, text: str) -> bytes:
    return rng.choice((b"", b"\0" * 64, b"\x1b]0;x\x07", rng.randbytes(200), b"[" * (1 << 19), b"[]," * (1 << 18), b"{" * 2000))


def json_value(rng: random.Random, text: str) -> bytes:
    """Some value becomes one that stands nowhere in any of these files."""
    content = json.loads(text)
    places = [*_places(content)]
    holder, key = rng.choice(places)
    holder[key] = "@@"
    bad = rng.choice(('{"\\u001b[2J": []}', "NaN", "-Infinity", "1e999", LONG, f"-{LONG}", DEEP, '[[[[{"a": [[]]}]]]]'))
    return json.dumps(content).replace('"@@"', bad).encode()


def json_no_number(rng: random.Random, text: str) -> bytes:
    """Some value becomes what is not JSON, or is beyond what any reader takes."""
    content = json.loads(text)
    holder, key = rng.choice([*_places(content)])
    holder[key] = "@@"
    return json.dumps(content).replace('"@@"', rng.choice(("NaN", "-Infinity", "1e999", LONG, f"-{LONG}", DEEP))).encode()


def json_duplicate(rng: random.Random, text: str) -> bytes:
    """Some object has one of its fields twice."""
    content = json.loads(text)
    objects = [content, *(held for holder, key in _places(content) if isinstance(held := holder[key], dict) and held)]
    chosen = rng.choice(objects)
    name = rng.choice([*chosen])
    chosen["@@"] = chosen[name]
    return json.dumps(content).replace('"@@"', json.dumps(name)).encode()


def json_unknown(rng: random.Random, text: str) -> bytes:
    content = json.loads(text)
    content[rng.choice(("\x1b[31mred", "x" * 100_000, "", "architectures"))] = rng.choice((1, None, [], "text"))
    return json.dumps(content).encode()


def json_without(rng: random.Random, text: str) -> bytes:
    content = json.loads(text)
    del content["schema"]
    return rng.choice((json.dumps(content), json.dumps([content]), json.dumps("text"), "null", "3", "[]", "{}")).encode()


def _places(value: Any) -> list[tuple[Any, Any]]:
    keys = [*value] if isinstance(value, dict) else [*range(len(value))] if isinstance(value, list) else []
    return [place for key in keys for place in ((value, key), *_places(value[key]))]


def toml_value(rng: random.Random, text: str) -> bytes:
    lines = text.splitlines()
    at = rng.choice([i for i, line in enumerate(lines) if re.match(r"[\w\" ,.-]+ = ", line) and '"""' not in line])
    name, _, _ = lines[at].partition(" = ")
    bad = rng.choice(("nan", "-inf", LONG, DEEP, "[]", '[{a = "\\u001b"}]', "1979-05-27", "{}", "{x = [1]}", "true"))
    lines[at] = f"{name} = {bad}"
    return "\n".join(lines).encode()


def toml_duplicate(rng: random.Random, text: str) -> bytes:
    lines = text.splitlines()
    at = rng.choice([i for i, line in enumerate(lines) if re.match(r"\w+ = \S+.*[^\[,]$", line) and '"""' not in line])
    return "\n".join([*lines[: at + 1], lines[at], *lines[at + 1 :]]).encode()


def toml_unknown(rng: random.Random, text: str) -> bytes:
    name = rng.choice(('"\\u001b[31m"', "x" * 100_000, '""', ".".join("a" * 2000), "[" * 100))
    return f"{name} = 1\n{text}".encode()


NUMBERS = ("-1", "0", "1", "255", "256", str(10**12), "x", LONG, "0x" + "f" * 5000)


def numbers_changed(text: str) -> Iterator[str]:
    """The text with each of its numbers replaced by each of NUMBERS, and with the ends of each range in the other order."""
    for found in re.finditer(r"(?<![\w.])-?(?:0x)?\d+(?!\.)|(?<=[vas])\d+", text):
        for number in NUMBERS:
            yield text[: found.start()] + number + text[found.end() :]
    for found in re.finditer(r"(\d+):(\d+)", text):
        yield f"{text[: found.start()]}{found[2]}:{found[1]}{text[found.end() :]}"


def assembly_number(rng: random.Random, text: str) -> bytes:
    lines = text.splitlines()
    while not (changed := [*numbers_changed(lines[at := rng.randrange(len(lines))])]):
        pass
    lines[at] = rng.choice(changed)
    return "\n".join(lines).encode()


def assembly_words(rng: random.Random, text: str) -> bytes:
    """A line loses an operand, gets one of another line, or is there twice."""
    lines = text.splitlines()
    at, other = rng.randrange(len(lines)), rng.choice(lines)
    head, comma, _ = lines[at].rpartition(",")
    lines[at] = rng.choice((head, head + comma + other.rpartition(",")[2], lines[at] + "\n" + lines[at], other))
    return "\n".join(lines).encode()


LAUGHS = "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9) if i else 'x'}]\n" for i in range(9))


def assembly_yaml(rng: random.Random, text: str) -> bytes:
    """The description of the kernel has what LLVM does not write."""
    begin, end = text.index("---\n") + 4, text.index("\n...")
    lines = text[begin:end].splitlines()
    at = rng.choice([i for i, line in enumerate(lines) if re.match(r"    \.\w+: +\S", line)])
    name, _, value = lines[at].partition(":")
    lines[at] = rng.choice(
        (
            f"{name}: &a {value}",
            f"{name}: [*a8]",
            f"{lines[at]}\n{lines[at]}",
            f"    <<: {{.other: 1}}\n{lines[at]}",
            f"{name}: {DEEP}",
            f"{name}: {{? [1] : 2}}",
            f"{name}: 2001-99-99",
            f"{name}: {rng.choice(('[]', 'null', '1.5', 'true', '{}', repr('x' * 5000)))}",
        )
    )
    return (text[:begin] + LAUGHS * ("*a8" in lines[at]) + "\n".join(lines) + text[end:]).encode()


ASSEMBLY_DRAWS = (assembly_number, assembly_number, assembly_words, assembly_yaml)
TEXT_DRAWS = (cut, with_bytes, garbage)
JSON_DRAWS = (*TEXT_DRAWS, json_value, json_value, json_value, json_duplicate, json_unknown, json_without)
CONFIG_DRAWS = (*TEXT_DRAWS, json_no_number, json_duplicate)
TOML_DRAWS = (with_bytes, toml_value, toml_value, toml_duplicate, toml_unknown)
KNOWN_FIELDS_DRAWS = tuple(draw for draw in JSON_DRAWS if draw is not json_unknown)
"""For readers that leave fields of other versions alone."""
NO_FILES = ("pipe", "endless", "folder", "nowhere", "loop", "huge", "missing")


def make_no_file(path: Path, kind: str) -> None:
    """Put one of NO_FILES in the place of a file, which is not there."""
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "huge":
        with path.open("wb") as file:
            file.truncate(1 << 40)
    elif kind != "missing":
        path.symlink_to({"endless": "/dev/zero", "nowhere": "nowhere", "loop": path.name}[kind])


def damage(rng: random.Random, path: Path, draws: Sequence[Draw]) -> None:
    """Make a file malformed by one of the draws; or put one of NO_FILES in its place, once in five times."""
    if rng.random() < 0.2:
        path.unlink()
        make_no_file(path, rng.choice(NO_FILES))
    else:
        path.write_bytes(rng.choice(draws)(rng, path.read_bytes().decode("latin-1")))


class Ended(NamedTuple):
    code: int
    out: str
    err: str
    seconds: float
    mebibytes: float

    @property
    def took_too_much(self) -> bool:
        return self.seconds > SECONDS or self.mebibytes > MEBIBYTES


def run_in_fork(main: Callable[[list[str]], object], arguments: list[str], folder: Path) -> Ended:
    """Run main(arguments) in a fork of this process, in the folder.

    The seconds are those of the CPU: other tests may run beside this one.
    """
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
