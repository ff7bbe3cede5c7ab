"""`python -m attn_lab instructions`: what Triton makes of other packages' kernels, and whether the emulator knows it."""

import os
from pathlib import Path

import click
from attn_fuzz.run.executor import use_interpreter
from attn_parity.compile import architectures_option, chosen_architectures
from attn_parity.console import notes, results
from attn_parity.options import Positive, Seed, plain_table


@click.command("instructions")
@click.argument("folders", nargs=-1, required=True, type=click.Path(file_okay=False, path_type=Path))
@click.option("--run", "targets", metavar="A,B,...", help="First run targets on the emulator; `all`: those of all packages.")
@architectures_option
@click.option("--examples", type=Positive, default=1, show_default=True, help="With --run: cases of each dtype of a target.")
@click.option("--seed", type=Seed, default=53, show_default=True, help="With --run: of the cases.")
@click.option("--write", "writes", is_flag=True, help="Write tests/emulated/kernels.csv, and add to instructions.txt there.")
def command(
    folders: tuple[Path, ...], targets: str | None, architectures: str | None, examples: int, seed: int, writes: bool
) -> int:
    """Read the texts of other packages' kernels in Triton's caches, and say what the emulator does not know.

    With --run the first of the FOLDERS keeps Triton's cache and what came of the cases. Targets that it has are left out.

    Exit 1 when there is something unknown.
    """
    use_interpreter("cpu")
    if targets is not None:
        chosen = [name for name in chosen_architectures(architectures) if name.startswith("gfx")]
        _run(folders[0], targets, chosen, examples, seed)
    from attn_lab.binaries import foreign_runs, instructions

    made, forms = instructions.read(instructions.texts(folders))
    lines = [*instructions.rows(made, foreign_runs.stored(folders))]
    table = plain_table(*instructions.COLUMNS, right=instructions.COLUMNS[3:])
    for line in lines:
        table.add_row(*map(str, line))
    results.print(table)
    unknown = {(of.architecture, form): why for of, each in made.items() for form, why in each.unknown.items()}
    for (architecture, form), why in sorted(unknown.items()):
        results.print(f"{architecture}: {form}: {why}", soft_wrap=True)
    if writes:
        instructions.write(forms)
        instructions.write_rows(lines)
    return int(bool(unknown))


def _run(folder: Path, targets: str, architectures: list[str], examples: int, seed: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    from attn_lab.binaries import foreign_runs

    os.environ["TRITON_CACHE_DIR"] = str(folder / foreign_runs.CACHE)  # before Triton is imported in a process that compiles
    from attn_fuzz.targets import registry

    every = [name for package in registry.packages().values() for name in package.places]
    for found in foreign_runs.run(folder, every if targets == "all" else targets.split(","), architectures, examples, seed):
        counts = ", ".join(f"{count} {kind}" for kind, count in found.verdicts.items())
        notes.print(f"{found.target}@{found.architecture}: {counts}", soft_wrap=True)
        for said in found.said:
            notes.print(f"  {said}", soft_wrap=True)
