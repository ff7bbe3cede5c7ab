"""`python -m attn_lab instructions`: what Triton makes of other packages' kernels, and whether the emulator knows it."""

from pathlib import Path

import click
from attn_fuzz.run.processes.executor import use_interpreter
from attn_parity.console import plain_table, results


@click.command("instructions")
@click.argument("folders", nargs=-1, required=True, type=click.Path(file_okay=False, path_type=Path))
@click.option("--write", "writes", is_flag=True, help="Write tests/emulated/kernels.csv, and add to instructions.txt there.")
def command(folders: tuple[Path, ...], writes: bool) -> int:
    """Read the texts of other packages' kernels in Triton's caches, and say what the emulator does not know.

    The JSON files of `attn-parity fuzz --json` in the FOLDERS say what came of cases of NAME@ARCHITECTURE.

    Exit 1 when there is something unknown.
    """
    use_interpreter("cpu")
    from attn_lab.binaries import instructions

    made, forms = instructions.read(instructions.texts(folders))
    lines = [*instructions.rows(made, instructions.runs(folders))]
    table = plain_table(*instructions.COLUMNS, right=instructions.COLUMNS[3:])
    for line in lines:
        table.add_row(*map(str, line))
    results.print(table)
    unknown = {(of.architecture, form): why for of, each in made.items() for form, why in each.unknown.items()}
    for (architecture, form), why in sorted(unknown.items()):
        results.print(f"{architecture}: {form}: {why}")
    if writes:
        instructions.write(forms)
        instructions.write_rows(lines)
    return int(bool(unknown))
