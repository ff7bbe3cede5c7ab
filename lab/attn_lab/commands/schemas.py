"""`python -m attn_lab schemas`: the JSON schemas of what `--json` writes."""

import click
import msgspec
from attn_lab import written
from attn_parity.json_types import OUTPUTS
from attn_parity.options import PAGES, check_option


@click.command("schemas")
@check_option
def command(check: bool) -> int:
    """Write the JSON schemas of what --json of users' commands writes."""
    texts = {}
    for name, kind in OUTPUTS.items():
        schema = {"$schema": "https://json-schema.org/draft/2020-12/schema", **msgspec.json.schema(kind)}
        text = msgspec.json.format(msgspec.json.encode(schema), indent=1).decode() + "\n"
        texts[PAGES / "schemas" / f"{name}.json"] = text
    return written.settle(texts, "python -m attn_lab schemas", checks=check)
