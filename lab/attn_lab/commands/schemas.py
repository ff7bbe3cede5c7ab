"""`python -m attn_lab schemas`: the JSON schema of what `--json` writes."""

from pathlib import Path

import click
import msgspec
from attn_fuzz import outputs
from attn_parity.json_types import OUTPUTS


@click.command("schemas")
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
def command(file: Path) -> int:
    """Write into FILE, under "$defs", the JSON schemas of what --json of users' commands writes."""
    _, parts = msgspec.json.schema_components(OUTPUTS.values(), ref_template="#/$defs/{name}")
    schema = {"$schema": "https://json-schema.org/draft/2020-12/schema", "$defs": parts}
    outputs.write(file, msgspec.json.format(msgspec.json.encode(schema), indent=1) + b"\n")
    return 0
