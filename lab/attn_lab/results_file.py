"""The JSON file of results beside docs/generated/zoo.md and docs/generated/mutants.md: a line for each mutant."""

from pathlib import Path
from typing import Any, TypeVar

import msgspec
from attn_fuzz import inputs
from attn_fuzz.errors import InputError
from attn_fuzz.patches.mutant import MutantError
from attn_fuzz.text import one_line

Results = TypeVar("Results", bound=msgspec.Struct)


def dumps(results: Any) -> bytes:
    """Results as JSON. `results` is a Struct whose last field is `mutants`."""
    rows = [msgspec.json.encode(row) for row in results.mutants]
    head = msgspec.json.encode(results).removesuffix(b",".join(rows) + b"]}")
    return head + b"\n" + b",\n".join(rows) + b"\n]}\n"


def load(path: Path, kind: type[Results]) -> Results:
    """Read results from a file.

    Raises:
        MutantError: the file cannot be read, holds no results of this kind, or results of another schema.
    """
    try:
        return msgspec.convert(inputs.read_record(path, str(kind.__struct_config__.tag)), kind)
    except InputError as error:
        raise MutantError(str(error)) from None
    except msgspec.MsgspecError as error:
        raise MutantError(f"{path}: {one_line(str(error), inputs.MESSAGE)}") from None
