"""`attn-parity examples`: the files that the guides use, for users with a wheel and no checkout."""

import os
from pathlib import Path

import click
from attn_fuzz import outputs
from attn_parity.console import results

_IN_WHEEL = Path(__file__).parents[1] / "example_files"
_IN_CHECKOUT = Path(__file__).parents[3] / "examples"


@click.command("examples")
@click.argument("folder", default="examples", type=click.Path(file_okay=False, path_type=Path))
def command(folder: Path) -> int:
    """Write the files that the guides use into FOLDER: targets, model files, configs; default: examples."""
    source = _IN_WHEEL if _IN_WHEEL.is_dir() else _IN_CHECKOUT
    files = sorted(path for path in source.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    copies = {folder / path.relative_to(source): path for path in files}
    if existing := [path for path in copies if os.path.lexists(path)]:  # a link that leads nowhere exists, too
        raise click.UsageError(f"{existing[0]} exists already, and is not written over")
    for parent in {path.parent: None for path in copies}:
        parent.mkdir(parents=True, exist_ok=True)
    for copied, path in copies.items():
        outputs.write(copied, path.read_bytes())
    results.print(f"{len(files)} files in {folder}")
    return 0
