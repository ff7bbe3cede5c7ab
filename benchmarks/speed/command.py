"""`python -m benchmarks speed`: our kernels beside others; `python -m benchmarks page`: the page of what was measured."""

import dataclasses
import sys
import time
from pathlib import Path

import click
from rich.console import Console

from benchmarks.options import aiter_option, commit_option, only_option, vllm_option
from benchmarks.timed import begun, cases_named, check_options, saving, use_device

console = Console(highlight=False, width=160)


@click.command()
@click.option(
    "--json", "path", type=click.Path(dir_okay=False, path_type=Path), help="Write the results into this file after each case."
)
@only_option
@click.option(
    "--drawn",
    "number",
    type=click.IntRange(min=1),
    help="Instead of the fixed cases, draw this number of cases from models and traffic.",
)
@click.option("--seed", type=click.IntRange(min=0), help="The seed of the drawn cases.")
@click.option(
    "--try",
    "tried",
    multiple=True,
    metavar="NAME=V,V",
    help="Values of a launch parameter; repeatable. In cases of latent attention all combinations are timed, too.",
)
@click.option(
    "--compilers", type=click.IntRange(min=0), default=0, help="Number of processes that compile the calls beforehand."
)
@click.option(
    "--budget",
    type=click.FloatRange(min=0, min_open=True),
    default=360.0,
    show_default=True,
    help="Stop after this many seconds.",
)
@vllm_option
@aiter_option
@click.option(
    "--before",
    type=click.Path(path_type=Path),
    help="A folder with an earlier version of this project, which `git worktree add` makes.",
)
@commit_option
@click.option("--tiny", is_flag=True, help="A few requests of some tens of keys, on a CPU too. No result has any value.")
def speed(
    path: Path | None,
    only: tuple[str, ...],
    number: int | None,
    seed: int | None,
    tried: tuple[str, ...],
    compilers: int,
    budget: float,
    vllm: Path | None,
    aiter: Path | None,
    before: Path | None,
    commit: str | None,
    tiny: bool,
) -> None:
    """Measure our kernels, PyTorch's, and vLLM's and AITER's Triton kernels where they are, in one run.

    Cases named MLA are of latent attention. The floor of a case is the longer of moving its bytes at the rate of a copy and
    computing its FLOPs at the rate of a matrix product, both measured in the same run. With --before, our kernels as they were
    are one more, and a line for each kind of traffic says how much faster they are now.
    """
    started = time.monotonic()
    if (number is None) != (seed is None):
        raise click.UsageError("--drawn and --seed go together: whoever tunes needs another seed than whoever measures")
    check_options(budget, path)
    device = use_device(tiny=tiny)
    from benchmarks.speed import ahead, cases, latent, peers, run
    from benchmarks.speed.before import gains, load_before
    from benchmarks.speed.drawn import draw_cases

    named = [*cases.CASES, *latent.CASES]
    chosen = cases_named(named if number is None or seed is None else draw_cases(number, seed), only)
    tries = values_to_try(tried)
    try:
        kernels = peers.load_all(vllm, aiter, console.print)
        earlier = before and load_before(before)
    except peers.MissingPeerError as error:
        raise click.ClickException(str(error)) from error
    fatal = {}
    if compilers and device.type == "cuda":
        folders = {"vllm": vllm, "aiter": aiter, "before": before}
        fatal = ahead.compile_ahead(chosen, compilers, **folders, tries=tries, console=console)
    found = begun(device, kernels.versions, commit, console, tiny=tiny)
    with saving(found, path, console) as save:
        run.measure(
            found,
            [case.tiny() for case in chosen] if tiny else chosen,
            run.all_participants(kernels, earlier, tries),
            device,
            sizes=run.TINY if tiny else run.WHOLE,
            budget=budget,
            started=started,
            save=save,
            console=console,
            fatal=fatal,
        )
    for line in gains(found.cases):
        console.print(line)
    if found.host_us:
        console.print("host, us per call: " + ", ".join(f"{name} {us:.0f}" for name, us in found.host_us.items()))
    if found.unmeasured:
        console.print(f"no time left for {', '.join(found.unmeasured)}; --budget gives more")


def values_to_try(tried: tuple[str, ...]) -> dict[str, list[int]]:
    """`block_n=32,64` as the field of Parameters and its values. A name that is given twice has the values of both.

    Raises:
        click.BadParameter: there is no such field, or no launch can have such a value.
    """
    from attn_optimized.launch.table import Parameters

    known = [field.name for field in dataclasses.fields(Parameters)]
    valid = Parameters(block_m=16, block_n=16, num_warps=1, num_stages=1)
    found: dict[str, list[int]] = {}
    for text in tried:
        name, _, values = text.partition("=")
        if name not in known or not all(value.isdecimal() for value in values.split(",")):
            raise click.BadParameter(f"got {text!r}, expected NAME=V,V with a name of {', '.join(known)}", param_hint="--try")
        try:
            given = [int(value) for value in values.split(",")]
            for value in given:
                dataclasses.replace(valid, **{name: value})
        except ValueError as error:
            raise click.BadParameter(f"{text!r}: {error}", param_hint="--try") from error
        found[name] = [*found.get(name, []), *given]
    return found


@click.command()
@click.argument("files", nargs=-1, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--check", is_flag=True, help="Write nothing; exit 1 if the page is not what its file makes.")
def page(files: tuple[Path, ...], check: bool) -> None:
    """Write docs/generated/performance.md of the runs that performance.json keeps, and of FILES of `speed` and `host`.

    Of a run on drawn cases, and of one of other cases, the newest of each machine is kept.
    """
    from attn_lab.pages import write_or_check

    from benchmarks.speed import page, performance

    try:
        runs = performance.read(page.DATA)
        for path in files:
            runs = performance.with_run(runs, path)
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    texts = {page.DATA: performance.text(runs), page.PAGE: page.text(runs)}
    sys.exit(write_or_check(texts, "python -m benchmarks page", checks=check))
