"""`python -m attn_lab instructions`: the instructions of other packages' kernels that the emulator does not know."""

from pathlib import Path

import click
from attn_parity.console import results
from attn_parity.options import plain_table

FIGURES = ("kernels", "texts", "mnemonics", "unknown")


@click.command("instructions")
@click.argument("folders", nargs=-1, required=True, type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--write", "writes", is_flag=True, help="Write tests/emulated/instructions.txt.")
def command(folders: tuple[Path, ...], writes: bool) -> int:
    """Read the texts of other packages' kernels in Triton's caches, and say what the emulator does not know.

    Exit 1 when there is such an instruction. `attn-parity compile TARGET --arch A,B` fills a cache: TRITON_CACHE_DIR.
    """
    from attn_lab.binaries import instructions

    packages, forms = instructions.read(instructions.texts(folders))
    table = plain_table("package", *FIGURES, right=FIGURES)
    for name, each in sorted(packages.items()):
        figures = (len(each.kernels), each.texts, len(each.mnemonics), len(each.unknown))
        table.add_row(name, *map(str, figures))
    results.print(table)
    unknown = {key: why for each in packages.values() for key, why in each.unknown.items()}
    for (form, architecture), why in sorted(unknown.items()):
        results.print(f"{architecture}: {form}: {why}", soft_wrap=True)
    if writes:
        instructions.write(forms)
    return int(bool(unknown))
