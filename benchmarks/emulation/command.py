"""`python -m benchmarks emulation`: instruction-level mutants of compiled kernels, and how many of them are found."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from benchmarks import PAGES

if TYPE_CHECKING:
    from benchmarks.emulation.trials import Trial

PAGE = PAGES / "emulation.md"
ARCHITECTURES = "gfx942,gfx1201,gfx950"


@click.command()
@click.option("--arch", "architectures", default=ARCHITECTURES, show_default=True, metavar="A,B,...")
@click.option("--sample", type=click.IntRange(min=0), default=600, show_default=True, help="Mutants; 0 runs the cases alone.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of cases and of mutants.")
@click.option("--layers", type=click.IntRange(min=1), default=3, show_default=True, help="Drawn layers of each architecture.")
@click.option(
    "--log",
    "path",
    type=click.Path(dir_okay=False, path_type=Path),
    default=Path(".attn-parity/emulation.jsonl"),
    show_default=True,
    help="Gets a line for each mutant. A second call runs what is missing.",
)
@click.option("--write", is_flag=True, help="Write the page, and its JSON beside it, from the log.")
@click.option("--rewrite", is_flag=True, help="Run nothing; write the page of what the log holds.")
@click.option("--check", is_flag=True, help="Run nothing; exit 1 if the page is not what its JSON makes.")
def emulation(
    architectures: str, sample: int, seed: int, layers: int, path: Path, write: bool, rewrite: bool, check: bool
) -> None:
    """Change one instruction of a compiled kernel, run it on the emulator, and count the changes that are found."""
    from benchmarks.emulation import page

    data = PAGE.with_suffix(".json")
    if check:
        if not PAGE.is_file() or PAGE.read_text(encoding="utf-8") != page.text(page.read(data), page.read_reasons()):
            raise click.ClickException(f"{PAGE} is not what {data} makes; python -m benchmarks emulation --write writes it")
        return
    rows = list(_logged(path).values()) if rewrite else _run(architectures.split(","), sample, seed, layers, path)
    click.echo(page.summary(rows))
    if write or rewrite:
        page.save(rows, data)
        PAGE.write_text(page.text(page.read(data), page.read_reasons()), encoding="utf-8")


def _logged(path: Path) -> "dict[str, Trial]":
    """The trials of a log by their names."""
    import msgspec

    from benchmarks.emulation.trials import Trial

    lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []  # what no line break follows was not written whole
    return {trial.name: trial for trial in (msgspec.json.decode(line, type=Trial) for line in lines)}


def _run(architectures: list[str], sample: int, seed: int, layers: int, path: Path) -> "list[Trial]":
    """The trials of a sample: those that the log holds, and those that it gets now."""
    os.environ["TRITON_INTERPRET"] = "1"  # the fuzzer's process interprets; another one compiles
    import msgspec
    from attn_parity.options import progress_bar

    from benchmarks.emulation.subjects import subjects
    from benchmarks.emulation.trials import drawn, tried

    path.parent.mkdir(parents=True, exist_ok=True)
    known = _logged(path)
    found = [
        subject
        for architecture in architectures
        for subject in subjects(architecture, seed=seed, choices=layers, folder=path.parent, report=click.echo)
    ]
    mutants = drawn(found, sample, seed)
    with progress_bar(len(mutants)) as show_bar, path.open("ab") as file:
        for i, mutant in enumerate(mutants):
            if mutant.name not in known:
                known[mutant.name] = tried(mutant)
                file.write(msgspec.json.encode(known[mutant.name]) + b"\n")
                file.flush()
            show_bar(i + 1, 0)
    return [known[mutant.name] for mutant in mutants]
