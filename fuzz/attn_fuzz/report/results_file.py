"""The JSON file of results beside docs/generated/zoo.md and docs/generated/mutants.md: a line for each mutant."""

from typing import Any, TypeVar

import msgspec
from attn_fuzz.zoo.mutants import MutantError

Results = TypeVar("Results", bound=msgspec.Struct)


def dumps(results: Any) -> bytes:
    """Results as JSON. `results` is a Struct whose last field is `mutants`."""
    rows = [msgspec.json.encode(row) for row in results.mutants]
    head = msgspec.json.encode(results).removesuffix(b",".join(rows) + b"]}")
    return head + b"\n" + b",\n".join(rows) + b"\n]}\n"


def loads(text: bytes, kind: type[Results], name: str) -> Results:
    """Read results from the text of the file `name`.

    Raises:
        MutantError: the text holds no results of this kind, or results of another schema.
    """
    try:
        return msgspec.json.decode(text, type=kind)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise MutantError(f"{name}: {error}") from None
