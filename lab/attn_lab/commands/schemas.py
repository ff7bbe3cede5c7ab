"""`python -m attn_lab schemas`: the JSON schemas of what `--json` writes."""

from pathlib import Path

import click
import msgspec
from attn_fuzz import outputs
from attn_parity.json_types import OUTPUTS


@click.command("schemas")
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path))
def command(folder: Path) -> int:
    """Write the JSON schemas of what --json of users' commands writes into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, kind in OUTPUTS.items():
        schema = {"$schema": "https://json-schema.org/draft/2020-12/schema", **msgspec.json.schema(kind)}
        outputs.write(folder / f"{name}.json", msgspec.json.format(msgspec.json.encode(schema), indent=1) + b"\n")
    return 0
