"""`python -m attn_lab miscompile`: instruction-level mutants of compiled kernels, and how many of them are found."""

from pathlib import Path

import click
from attn_binaries.build import in_processes
from attn_fuzz.errors import ExecutorError
from attn_fuzz.outputs import RUNS
from attn_lab.miscompile import page
from attn_parity.console import progress_bar, results
from attn_parity.files import check_writable
from attn_parity.options import Positive, Seed
from attn_parity.versions import version

ARCHITECTURES = "gfx942,gfx1201,gfx950"


@click.command("miscompile")
@click.option("--arch", "architectures", default=ARCHITECTURES, show_default=True, metavar="A,B,...", help="Architectures.")
@click.option("--sample", type=Positive, default=500, show_default=True, help="Number of mutants to draw.")
@click.option("--seed", type=Seed, default=0, show_default=True, help="Seed of the drawn layers and mutants.")
@click.option("--layers", type=Positive, default=8, show_default=True, help="Number of layers to draw for each architecture.")
@click.option(
    "--workers", type=Positive, default=1, show_default=True, help="Number of processes; each runs one layer at a time."
)
@click.option(
    "--log",
    "path",
    type=click.Path(dir_okay=False, path_type=Path),
    default=RUNS / "miscompile.jsonl",
    show_default=True,
    help="The file of results, one line for each mutant. A second call continues an interrupted one.",
)
@click.option("--write", is_flag=True, help="Keep the whole sample in docs/generated/miscompiled.csv, for `mutate page`.")
@click.option("--read", is_flag=True, help="Run nothing, and count what the log holds.")
def command(architectures: str, sample: int, seed: int, layers: int, workers: int, path: Path, write: bool, read: bool) -> int:
    """Change one instruction of a compiled kernel, run it on the emulator, and count the changes that are found."""
    if write and architectures != ARCHITECTURES:
        raise click.UsageError("--write: expected no --arch: the page has a whole sample")
    if read and not path.is_file():
        raise click.UsageError(f"--log: {path} does not exist, so there is nothing to read")
    check_writable(page.DATA if write else None, "--write")
    errors, interrupted = ([], False) if read else _run(architectures.split(","), sample, seed, layers, workers, path)
    rows = page.logged(path)
    results.print(f"found: {page.share(rows)}" if rows else "no mutants")
    if interrupted:
        return 130
    if errors:
        raise ExecutorError("; ".join(errors))
    if write:
        page.save(rows, version("triton") or "")
    return 0


def _run(architectures: list[str], sample: int, seed: int, layers: int, workers: int, path: Path) -> tuple[list[str], bool]:
    """Run those mutants of a sample that the log lacks. Returns why some are missing, and whether it was interrupted."""
    from attn_lab.miscompile.trials import logged_trials

    path.parent.mkdir(parents=True, exist_ok=True)
    places = [(architecture, layer) for layer in range(layers) for architecture in architectures]
    jobs = [
        (*place, layers, sample // len(places) + (i < sample % len(places)), seed, str(path)) for i, place in enumerate(places)
    ]
    with progress_bar(len(jobs)) as show_bar:
        found, interrupted = in_processes(logged_trials, jobs, workers, lambda found: show_bar(len(found)), interpreter=True)
    return [f"{job[0]}, layer {job[1]}: {one}" for job, one in found.items() if isinstance(one, str)], interrupted
