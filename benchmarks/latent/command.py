"""`python -m benchmarks latent`: the speed of latent attention, and of other launch parameters."""

import dataclasses
import importlib.metadata
import math
import os
import platform
import shlex
import sys
from pathlib import Path

import click
from rich.console import Console

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
    import torch

    on_gpu = torch.cuda.is_available()
    if not on_gpu and not tiny:
        raise click.UsageError("torch sees no GPU here; --tiny interprets tiny cases, whose times have no value")
    if math.isnan(budget):
        raise click.BadParameter("nan is no number of seconds", param_hint="--budget")
    if path is not None and not path.absolute().parent.is_dir():
        raise click.BadParameter(f"{path.parent} is no folder", param_hint="--json")
    if not on_gpu:
        os.environ["TRITON_INTERPRET"] = "1"
        from attn_fuzz.interpreted.interpreter import install

        install()
    from attn_parity.options import sigterm_interrupts

    from benchmarks.latent import run
    from benchmarks.latent.cases import CASES
    from benchmarks.speed import machine, peers, results
    from benchmarks.speed.run import TINY, WHOLE, DeviceError

    chosen = [case for case in CASES if not only or any(text in case.name for text in only)]
    if not chosen:
        raise click.BadParameter(f"no case has {' or '.join(map(repr, only))} in its name", param_hint="--only")
    tries = values_to_try(tried)
    try:
        kernel = peers.load_if_there(peers.load_vllm_latent, vllm, console.print)
    except peers.MissingPeerError as error:
        raise click.ClickException(str(error)) from error
    device = torch.device("cuda" if on_gpu else "cpu")
    if compilers and on_gpu:
        run.compile_ahead(chosen, tries, compilers, console)
    versions = {
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "triton": importlib.metadata.version("triton"),
    }
    found = results.Run(
        of_value=on_gpu and not tiny,
        machine=torch.cuda.get_device_name() if on_gpu else "CPU",
        versions=versions | ({} if kernel is None else {"vllm": kernel.version}),
        command=shlex.join(["python", "-m", "benchmarks", *sys.argv[1:]]),
        commit=commit or results.commit(),
        rates=machine.rates(device, tiny=tiny),
    )
    rates = found.rates
    console.print(f"{found.machine}, {', '.join(f'{name} {version}' for name, version in found.versions.items())}")
    console.print(f"copy {rates.copy / 1e12:.3g} TB/s, matmul burst {rates.matmul_burst / 1e12:.4g} TFLOP/s, sustained "
                  f"{rates.matmul_sustained / 1e12:.4g} TFLOP/s")  # fmt: skip

    def save(run: results.Run) -> None:
        if path is not None:
            results.write(run, path)

    sizes, cases = (TINY, [case.tiny() for case in chosen]) if tiny else (WHOLE, chosen)
    try:
        with sigterm_interrupts():
            run.measure(found, cases, tries, kernel, device, sizes=sizes, budget=budget, save=save, console=console)
    except KeyboardInterrupt:
        save(found)
        console.print(f"interrupted: {len(found.cases)} cases measured, {len(found.unmeasured)} not")
        sys.exit(130)
    except DeviceError as error:
        save(found)
        raise click.ClickException(str(error)) from error
    if found.unmeasured:
        console.print(f"no time left for {', '.join(found.unmeasured)}; --budget gives more")


def values_to_try(tried: tuple[str, ...]) -> dict[str, list[int]]:
    """`block_n=32,64` as the field of Parameters and its values."""
    from attn_optimized.launch.table import Parameters

    known = [field.name for field in dataclasses.fields(Parameters)]
    found = {}
    for text in tried:
        name, _, values = text.partition("=")
        if name not in known or not all(value.isdecimal() for value in values.split(",")):
            raise click.BadParameter(f"got {text!r}, expected NAME=V,V with a name of {', '.join(known)}", param_hint="--try")
        found[name] = [int(value) for value in values.split(",")]
    return found
