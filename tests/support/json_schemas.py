"""Holds what `--json` writes to the types that describe it."""

import json
from typing import Any

import jsonschema
import msgspec
from attn_parity.commands.compile import Compile
from attn_parity.commands.doctor.sections import Doctor
from attn_parity.commands.fuzz.record import Fuzz, FuzzRuns
from attn_parity.commands.select.record import Select

OUTPUTS: dict[str, Any] = {
    "fuzz": Fuzz,
    "fuzz-runs": FuzzRuns,
    "compile": Compile,
    "select": Select,
    "doctor": Doctor,
}
"""The types of what `--json` writes, by command; that of `fuzz` with several targets is `fuzz-runs`."""

_, PARTS = msgspec.json.schema_components(OUTPUTS.values(), ref_template="#/$defs/{name}")


def closed(schema: Any) -> Any:
    """The schema without leave for fields that it does not name: what is written is to be described."""
    if isinstance(schema, list):
        return [closed(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    found = {name: closed(item) for name, item in schema.items()}
    if found.get("type") == "object" and "properties" in found:
        found["additionalProperties"] = False
    return found


def check(name: str, text: str) -> Any:
    """The record that a command wrote, if its type allows it."""
    result = json.loads(text)
    jsonschema.validate(result, {"$ref": f"#/$defs/{OUTPUTS[name].__name__}", "$defs": closed(PARTS)})
    return result
