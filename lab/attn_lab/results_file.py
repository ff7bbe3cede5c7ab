"""JSON files of results beside the page of the zoo, docs/generated/zoo.md, with a line for each mutant."""

import os.path
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args

import msgspec
from attn_fuzz import inputs

Results = TypeVar("Results", bound=msgspec.Struct)


def dumps(results: Any) -> bytes:
    """Results as JSON. `results` is a Struct whose last field is `mutants`. Each mutant is a list of the values of its fields,
    without those at the end that are defaults."""
    rows = [_first_fields(row) for row in results.mutants]
    prefix = os.path.commonprefix([row[0] for row in rows])  # noqa: RUF071  # of names, character by character
    named = [[name.removeprefix(prefix), *others] for name, *others in rows]
    head = msgspec.json.encode(msgspec.to_builtins(msgspec.structs.replace(results, mutants=())) | {"prefix": prefix})
    return _with_rows(head, list(map(msgspec.json.encode, named)))


def _with_rows(head: bytes, rows: Sequence[bytes]) -> bytes:
    head = head.replace(b'"mutants":[],', b"").removesuffix(b"}") + b',"mutants":['
    return head + b"\n" + b",\n".join(rows) + b"\n]}\n"


def _first_fields(row: Any) -> list[Any]:
    """The fields of a Struct in their order, without those at the end that have their defaults."""
    given, defaults = list(msgspec.structs.astuple(row)), list(row.__struct_defaults__)
    while defaults and given[-1] == defaults.pop():
        given.pop()
    return given


def load(path: Path, kind: type[Results]) -> Results:
    """Read results from a file.

    Raises:
        InputError: the file cannot be read, holds no results of this kind, or results of another schema.
    """
    record = inputs.read_record(path, str(kind.__struct_config__.tag))
    (of_row,) = (get_args(field.type)[0] for field in msgspec.structs.fields(kind) if field.name == "mutants")
    prefix = record.pop("prefix", "")
    if isinstance(rows := record.get("mutants"), list):
        record["mutants"] = [_named(row, of_row.__struct_fields__, prefix) for row in rows]
    return inputs.converted(path, record, kind)


def _named(row: Any, fields: Sequence[str], prefix: Any) -> Any:
    if not (isinstance(row, list) and row and isinstance(row[0], str) and len(row) <= len(fields)):
        return row
    return dict(zip(fields, [f"{prefix}{row[0]}", *row[1:]], strict=False))
