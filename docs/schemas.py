"""Writes the JSON schemas of what `--json` writes: python docs/schemas.py. With --check, exit 1 if one is not current."""

import sys
from pathlib import Path

import msgspec
from attn_parity.json_types import OUTPUTS

FOLDER = Path(__file__).with_name("generated") / "schemas"


def texts() -> dict[Path, str]:
    """The text of each schema's file."""
    found = {}
    for name, kind in OUTPUTS.items():
        schema = {"$schema": "https://json-schema.org/draft/2020-12/schema", **msgspec.json.schema(kind)}
        found[FOLDER / f"{name}.json"] = msgspec.json.format(msgspec.json.encode(schema), indent=1).decode() + "\n"
    return found


def main(checks: bool) -> int:
    wrong = 0
    for path, text in texts().items():
        if not checks:
            path.parent.mkdir(exist_ok=True)
            path.write_text(text, encoding="utf-8")
        elif not path.is_file() or path.read_text(encoding="utf-8") != text:
            print(f"{path} is not current: run `python docs/schemas.py`")
            wrong += 1
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main("--check" in sys.argv[1:]))
