"""`python -m benchmarks latent`: the speed of latent attention, and of other launch parameters."""

import dataclasses
from pathlib import Path

import click
from rich.console import Console

from benchmarks.timed import begun, cases_named, check_options, saving, use_device

console = Console(highlight=False, width=160)


@click.command()
@click.option("--json", "path", type=click.Path(dir_okay=False, path_type=Path), help="Written after each case.")
@click.option("--only", multiple=True, metavar="TEXT", help="Cases whose name holds this; all if not given.")
@click.option(
    "--try", "tried", multiple=True, metavar="NAME=V,V", help="Values of a launch parameter: all combinations are timed, too."
)
@click.option("--compilers", type=click.IntRange(min=0), default=0, help="Processes that make each call once beforehand.")
@click.option("--budget", type=click.FloatRange(min=0, min_open=True), default=360.0, show_default=True, help="Seconds.")
@click.option("--vllm", type=click.Path(path_type=Path), help="A folder that holds the package `vllm`.")
@click.option("--commit", help="Where git does not know it.")
@click.option("--tiny", is_flag=True, help="A few requests of some tens of keys, on a CPU too. No result has any value.")
def latent(
    path: Path | None,
    only: tuple[str, ...],
    tried: tuple[str, ...],
    compilers: int,
    budget: float,
    vllm: Path | None,
    commit: str | None,
    tiny: bool,
) -> None:
    """Measure latent attention (MLA) beside vLLM's Triton kernel, as shares of the floor.

    The floor of a case is the longer of moving its bytes at the rate of a copy and computing its FLOPs at the rate of a matrix
    product, both measured in the same run. A sample of rows is checked against float64 before anything is timed.
    """
    check_options(budget, path)
    device = use_device(tiny=tiny)
    from benchmarks.latent import run
    from benchmarks.latent.cases import CASES
    from benchmarks.speed import peers
    from benchmarks.speed.run import TINY, WHOLE

    chosen = cases_named(CASES, only)
    tries = values_to_try(tried)
    try:
        kernel = peers.load_if_there(peers.load_vllm_latent, vllm, console.print)
    except peers.MissingPeerError as error:
        raise click.ClickException(str(error)) from error
    if compilers and device.type == "cuda":
        run.compile_ahead(chosen, tries, compilers, console)
    versions = {} if kernel is None else {"vllm": kernel.version}
    found = begun(device, versions, commit, console, tiny=tiny, schema=run.SCHEMA)
    sizes, cases = (TINY, [case.tiny() for case in chosen]) if tiny else (WHOLE, chosen)
    with saving(found, path, console) as save:
        run.measure(found, cases, tries, kernel, device, sizes=sizes, budget=budget, save=save, console=console)
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
