"""`python -m attn_lab schemas`: the JSON schema of what `--json` writes."""

import click
import msgspec
from attn_lab import written
from attn_parity.json_types import OUTPUTS
from attn_parity.options import PAGES, check_option

PAGE = PAGES / "schemas.json"


@click.command("schemas")
@check_option
def command(check: bool) -> int:
    """Write docs/generated/schemas.json: under "$defs", what --json of each users' command writes."""
    _, parts = msgspec.json.schema_components(OUTPUTS.values(), ref_template="#/$defs/{name}")
    schema = {"$schema": "https://json-schema.org/draft/2020-12/schema", "$defs": parts}
    text = msgspec.json.format(msgspec.json.encode(schema), indent=1).decode() + "\n"
    return written.settle({PAGE: text}, "python -m attn_lab schemas", checks=check)
