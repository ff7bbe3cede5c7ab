"""Files that a command is given, read with bounds: a stranger may have written them.

A file is read if it is a regular file of limited size; a pipe or a device has no end. JSON is refused if it is nested
deeper than MAX_DEPTH, if an object has a name twice, or if a number is no finite number or has more than MAX_DIGITS digits.
TOML has the same bounds. Reading takes time in proportion to the text. Importing this module needs no extra.
"""

import json
import os
import re
import stat
import tomllib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from attn_fuzz.errors import InputError
from attn_fuzz.text import one_line

Record = TypeVar("Record")
MAX_BYTES = 1 << 20
MAX_LARGE_BYTES = 1 << 24
"""The most bytes of a file that may be large: a report, a model config, a code object."""
MAX_DEPTH = 32
MAX_DIGITS = 400
"""The most digits of a number. The largest float64 has 309."""
MAX_QUOTE = 200
# a string without an end goes to the end of the text, or of the line: no character is looked at from two begins
_NUMBER = rf"\b[0-9][0-9A-Fa-f_x]{{{MAX_DIGITS},}}+"
_TOKEN = re.compile(rf'"(?:[^"\\]++|\\.)*+(?:"|\\?\Z)|[\[\]{{}}:]|{_NUMBER}', re.DOTALL)
_TOML_TOKEN = re.compile(
    r'"{3}(?:[^"\\]++|\\.|"{1,2}+(?!"))*+(?:"{3,5}|\\?\Z)'
    r"|'{3}(?:[^']++|'{1,2}+(?!'))*+(?:'{3,5}|\Z)"
    r'|"(?:[^"\\\n]++|\\[^\n])*+(?:"|\\?(?=\n|\Z))'
    r"|'[^'\n]*+'?|#[^\n]*+"
    rf"|[.=\[\],{{}}\n]|{_NUMBER}",
    re.DOTALL,
)


def _no_number(name: str) -> NoReturn:
    raise InputError(f"{one_line(name, MAX_QUOTE)} is not a finite number")


def read_bytes(path: Path, most: int = MAX_BYTES) -> bytes:
    """The bytes of a file.

    Raises:
        InputError: the file cannot be read, is no regular file, or has more than `most` bytes.
    """
    with _opened(path, most) as file:
        # a file may say that it is smaller than it is, as those of /proc do; what is asked for is allocated
        most = min(most, max(os.fstat(file.fileno()).st_size, MAX_BYTES))
        text = file.read(most + 1)
        if text is None:  # a file of /proc that would wait
            raise InputError(f"{path}: not a file")
        if len(text) > most:
            raise InputError(f"{path}: larger than {most} bytes")
        return text


@contextmanager
def _opened(path: Path, most: int) -> Iterator[Any]:
    try:
        with open(path, "rb", opener=_without_waiting) as file:
            found = os.fstat(file.fileno())
            if not stat.S_ISREG(found.st_mode):
                raise InputError(f"{path}: not a file")
            if found.st_size > most:
                raise InputError(f"{path}: larger than {most} bytes")
            yield file
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from None


def read_text(path: Path, most: int = MAX_BYTES) -> str:
    """The text of a UTF-8 file.

    Raises:
        InputError: as `read_bytes`, or the file is not UTF-8. The message begins with the path.
    """
    try:
        return read_bytes(path, most).decode()
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: {error}") from None


def read_json(path: Path, most: int = MAX_BYTES, constant: Callable[[str], Any] = _no_number) -> Any:
    """The contents of a JSON file.

    Args:
        constant: makes a value of Infinity, -Infinity or NaN, which Python writes and JSON has not.

    Raises:
        InputError: as `read_text`, or the text is not JSON, or beyond the bounds. The message begins with the path.
    """
    text = read_text(path, most)
    try:
        check_json(text)
        return json.loads(text, parse_float=_finite, parse_constant=constant)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: {one_line(str(error), MAX_QUOTE)}") from None


def read_record(path: Path, schema: str, most: int = MAX_BYTES) -> dict[str, Any]:
    """The object that a JSON file of a schema holds. Its field `schema` names the schema.

    Raises:
        InputError: as `read_json`, or the file holds no object, or one of another schema or of none.
    """
    content = read_json(path, most)
    found = content.get("schema") if isinstance(content, dict) else None
    if found != schema:
        got = "nothing" if found is None else one_line(repr(found), MAX_QUOTE)
        raise InputError(f"{path}: schema: got {got}, expected {schema!r}")
    return content


def read_as(path: Path, schema: str, kind: type[Record], most: int = MAX_BYTES) -> Record:
    """The same as a type of msgspec.

    Raises:
        InputError: as `read_record`, or a field is missing, of another type or out of range.
    """
    return converted(path, read_record(path, schema, most), kind)


def read_toml(path: Path, most: int = MAX_BYTES) -> dict[str, Any]:
    """The contents of a TOML file.

    Raises:
        InputError: as `read_text`, or the text is not TOML, or beyond the bounds. The message begins with the path.
    """
    text = read_text(path, most)
    try:
        _check_toml(text)
        found = tomllib.loads(text)
        _check_depth(found)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: {one_line(str(error), MAX_QUOTE)}") from None
    return found


def read_toml_as(path: Path, kind: type[Record]) -> Record:
    """The contents of a TOML file as a type that msgspec knows. InputError: as `read_toml`, or they are of another type."""
    return converted(path, read_toml(path), kind)


def converted(path: Path, content: object, kind: type[Record]) -> Record:
    """The content of a file as a type that msgspec knows. InputError: it is of another type."""
    import msgspec  # of the extra `fuzz`

    try:
        return msgspec.convert(content, kind, str_keys=True)
    except msgspec.ValidationError as error:
        raise InputError(f"{path}: {one_line(str(error), MAX_QUOTE)}") from None


def check_json(text: str) -> None:
    """Hold a JSON text to the bounds, before or after something else reads it.

    Raises:
        InputError: values are nested too deeply, an object has a name twice, or a number has too many digits.
    """
    names: list[set[str]] = []
    last = ""
    for match in _TOKEN.finditer(text):
        token = match.group()
        if token in "[{":
            names.append(set())
            if len(names) > MAX_DEPTH:
                raise InputError(f"nested more than {MAX_DEPTH} deep")
        elif token in "]}":
            if names:
                names.pop()
        elif token == ":" and names:
            if last in names[-1]:
                raise InputError(f"{one_line(repr(last), MAX_QUOTE)} is there twice")
            names[-1].add(last)
        elif token[0] == '"':
            last = json.loads(token, strict=False) if "\\" in token else token[1:-1]
        elif token != ":":
            raise InputError(f"a number of more than {MAX_DIGITS} digits")


def _check_toml(text: str) -> None:
    """Hold a TOML text to the bounds for which Python's parser would take time by their squares."""
    dots = 0
    for match in _TOML_TOKEN.finditer(text):
        token = match.group()
        if token == ".":
            dots += 1
            if dots > MAX_DEPTH:
                raise InputError(f"a name of more than {MAX_DEPTH} parts")
        elif token in "=[],{}\n":
            dots = 0
        elif token[0].isdigit():
            raise InputError(f"a number of more than {MAX_DIGITS} digits")


def _check_depth(value: Any) -> None:
    layer = [value]
    for _ in range(MAX_DEPTH + 1):
        held = [each.values() if isinstance(each, dict) else each for each in layer if isinstance(each, dict | list)]
        if not held:
            return
        layer = list(chain.from_iterable(held))
    raise InputError(f"nested more than {MAX_DEPTH} deep")


def _without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)  # without it, opening a pipe waits for someone who writes


def _finite(number: str) -> float:
    if float(number) in (float("inf"), float("-inf")):
        _no_number(number)
    return float(number)
