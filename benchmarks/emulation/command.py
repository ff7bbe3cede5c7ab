"""`python -m benchmarks emulation`: instruction-level mutants of compiled kernels, and how many of them are found."""

import sys
from pathlib import Path

import click

ARCHITECTURES = "gfx942,gfx1201,gfx950"
LOG = Path(".attn-parity/emulation.jsonl")


@click.command()
@click.option("--arch", "architectures", default=ARCHITECTURES, show_default=True, metavar="A,B,...")
@click.option("--sample", type=click.IntRange(min=1), default=500, show_default=True, help="Mutants.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of cases and of mutants.")
@click.option("--layers", type=click.IntRange(min=1), default=8, show_default=True, help="Drawn layers of each architecture.")
@click.option("--workers", type=click.IntRange(min=1), default=1, show_default=True, help="Processes, each at one layer.")
@click.option(
    "--log",
    "path",
    type=click.Path(dir_okay=False, path_type=Path),
    default=LOG,
    show_default=True,
    help="Gets a line for each mutant. A second call runs what is missing.",
)
@click.option("--write", is_flag=True, help="Write the page, and its JSON beside it, from the log.")
@click.option("--rewrite", is_flag=True, help="Run nothing; write the page of what the log holds.")
@click.option("--check", is_flag=True, help="Run nothing; exit 1 if the page is not what its JSON files make.")
def emulation(
    architectures: str, sample: int, seed: int, layers: int, workers: int, path: Path, write: bool, rewrite: bool, check: bool
) -> None:
    """Change one instruction of a compiled kernel, run it on the emulator, and count the changes that are found."""
    from benchmarks.emulation import page
    from benchmarks.emulation.settled import PAGE, settle

    if check:
        sys.exit(settle(checks=True))
    errors = [] if rewrite else _run(architectures.split(","), sample, seed, layers, workers, path)
    rows = page.logged(path)
    click.echo(page.summary(rows))
    if write or rewrite:
        page.save(rows, PAGE.with_suffix(".json"))
        settle(checks=False)
    if errors:
        raise click.ClickException("; ".join(errors))


def _run(architectures: list[str], sample: int, seed: int, layers: int, workers: int, path: Path) -> list[str]:
    """Have the log hold a sample. Returns why it lacks some."""
    from attn_parity.binaries.build import in_processes
    from attn_parity.options import progress_bar

    from benchmarks.emulation.trials import logged_trials

    path.parent.mkdir(parents=True, exist_ok=True)
    places = [(architecture, layer) for layer in range(layers) for architecture in architectures]
    jobs = [
        (*place, layers, sample // len(places) + (i < sample % len(places)), seed, str(path)) for i, place in enumerate(places)
    ]
    with progress_bar(len(jobs)) as show_bar:
        found, interrupted = in_processes(logged_trials, jobs, workers, lambda found: show_bar(len(found), 0), interpreter=True)
    errors = [f"{job[0]}, layer {job[1]}: {one}" for job, one in found.items() if isinstance(one, str)]
    return [*errors, *["interrupted"] * interrupted]
