"""`attn-parity examples`: the files that the guides use, for who has a wheel and no checkout."""

from pathlib import Path

import click
from attn_fuzz import outputs
from attn_parity.console import results

_IN_WHEEL = Path(__file__).with_name("example_files")
_IN_CHECKOUT = Path(__file__).parents[2] / "examples"


@click.command("examples")
@click.argument("folder", default="examples", type=click.Path(file_okay=False, path_type=Path))
def command(folder: Path) -> int:
    """Write the files that the guides use into FOLDER: two targets, model files, configs; default: examples."""
    source = _IN_WHEEL if _IN_WHEEL.is_dir() else _IN_CHECKOUT
    files = sorted(path for path in source.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    if there := [path for path in files if (folder / path.relative_to(source)).exists()]:
        raise click.ClickException(f"{folder / there[0].relative_to(source)} exists already, and is not written over")
    for path in files:
        copied = folder / path.relative_to(source)
        copied.parent.mkdir(parents=True, exist_ok=True)
        outputs.write(copied, path.read_bytes())
    results.print(f"{len(files)} files in {folder}", soft_wrap=True)
    return 0
