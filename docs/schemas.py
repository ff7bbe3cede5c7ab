"""Writes the JSON schemas of what `--json` writes into a folder: python docs/schemas.py FOLDER."""

import sys
from pathlib import Path

import msgspec
from attn_parity.json_types import OUTPUTS


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, kind in OUTPUTS.items():
        schema = {"$schema": "https://json-schema.org/draft/2020-12/schema", **msgspec.json.schema(kind)}
        (folder / f"{name}.json").write_bytes(msgspec.json.format(msgspec.json.encode(schema), indent=1) + b"\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
