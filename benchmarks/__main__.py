"""`python -m benchmarks speed` measures, `python -m benchmarks page` writes performance.md from what was measured,
`python -m benchmarks tune` searches for launch parameters. Beside vLLM's and AITER's kernels, `python -m benchmarks binaries`
is what the compilers make of ours, and `python -m benchmarks counts` what ours execute on the emulator. `python -m benchmarks
latent` measures latent attention (MLA), and `python -m benchmarks ranks` attention over several GPUs."""

import importlib.metadata
import math
import os
import platform
import shlex
import sys
import time
from pathlib import Path

import click
from rich.console import Console

from benchmarks.binaries.command import binaries
from benchmarks.counts.command import counts
from benchmarks.emulation.command import emulation
from benchmarks.emulation.options import options
from benchmarks.emulation.runs import emulated
from benchmarks.latent.command import latent
from benchmarks.ranks.command import ranks
from benchmarks.tuning.command import tune

console = Console(highlight=False, width=160)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def cli() -> None:
    """Speed, side by side."""


cli.add_command(tune)
cli.add_command(latent)
cli.add_command(binaries)
cli.add_command(counts)
cli.add_command(emulated)
cli.add_command(emulation)
cli.add_command(options)
cli.add_command(ranks)


@cli.command()
@click.option("--json", "path", type=click.Path(dir_okay=False, path_type=Path), help="Written after each case.")
@click.option("--only", multiple=True, help="Cases whose name holds this text; all if not given.")
@click.option("--drawn", "number", type=click.IntRange(min=1), help="So many cases of drawn models and traffic instead.")
@click.option("--seed", type=click.IntRange(min=0), help="Of the drawn cases.")
@click.option("--compilers", type=click.IntRange(min=0), default=0, help="Processes that make each call once beforehand.")
@click.option("--budget", type=click.FloatRange(min=0, min_open=True), default=360.0, show_default=True, help="Seconds.")
@click.option("--vllm", type=click.Path(path_type=Path), help="A folder that holds the package `vllm`.")
@click.option("--aiter", type=click.Path(path_type=Path), help="A folder that holds AMD's package `aiter`.")
@click.option("--commit", help="Where git does not know it.")
@click.option("--tiny", is_flag=True, help="A few requests of some tens of keys, on a CPU too. No result has any value.")
def speed(
    path: Path | None,
    only: tuple[str, ...],
    number: int | None,
    seed: int | None,
    compilers: int,
    budget: float,
    vllm: Path | None,
    aiter: Path | None,
    commit: str | None,
    tiny: bool,
) -> None:
    """Measure our kernels, PyTorch's, and vLLM's and AITER's Triton kernels where they are, in one run."""
    started = time.monotonic()
    import torch

    on_gpu = torch.cuda.is_available()
    if not on_gpu and not tiny:
        raise click.UsageError("torch sees no GPU here; --tiny interprets tiny cases, whose times have no value")
    if (number is None) != (seed is None):
        raise click.UsageError("--drawn and --seed go together: whoever tunes needs another seed than whoever measures")
    if math.isnan(budget):
        raise click.BadParameter("nan is no number of seconds", param_hint="--budget")
    if path is not None and not path.absolute().parent.is_dir():
        raise click.BadParameter(f"{path.parent} is no folder", param_hint="--json")
    if not on_gpu:
        os.environ["TRITON_INTERPRET"] = "1"
        from attn_fuzz.interpreted.interpreter import install

        install()
    from attn_parity.options import sigterm_interrupts

    from benchmarks.speed import ahead, machine, participants, peers, results, run
    from benchmarks.speed.cases import CASES
    from benchmarks.speed.drawn import draw_cases

    cases = CASES if number is None or seed is None else draw_cases(number, seed)
    chosen = [case for case in cases if not only or any(text in case.name for text in only)]
    if not chosen:
        raise click.BadParameter(f"no case has {' or '.join(map(repr, only))} in its name", param_hint="--only")
    device = torch.device("cuda" if on_gpu else "cpu")
    try:
        kernels = {
            "vllm": peers.load_if_there(peers.load_vllm, vllm, console.print),
            "aiter": peers.load_if_there(peers.load_aiter, aiter, console.print),
        }
    except peers.MissingPeerError as error:
        raise click.ClickException(str(error)) from error
    fatal = {}
    if compilers and on_gpu:
        fatal = ahead.compile_ahead(chosen, compilers, vllm=vllm, aiter=aiter, console=console)
    found = results.Run(
        of_value=on_gpu and not tiny,
        machine=torch.cuda.get_device_name() if on_gpu else "CPU",
        versions={
            "python": platform.python_version(),
            "torch": str(torch.__version__),
            "triton": importlib.metadata.version("triton"),
            **{name: kernel.version for name, kernel in kernels.items() if kernel is not None},
        },
        command=shlex.join(["python", "-m", "benchmarks", *sys.argv[1:]]),
        commit=commit or results.commit(),
        rates=machine.rates(device, tiny=tiny),
    )
    console.print(f"{found.machine}, {', '.join(f'{name} {version}' for name, version in found.versions.items())}")
    rates = found.rates
    console.print(
        f"read {rates.read / 1e12:.3g} TB/s, copy {rates.copy / 1e12:.3g} TB/s, matmul burst {rates.matmul_burst / 1e12:.4g} "
        f"TFLOP/s, sustained {rates.matmul_sustained / 1e12:.4g} TFLOP/s"
    )

    def save(run: results.Run) -> None:
        if path is not None:
            results.write(run, path)

    try:
        with sigterm_interrupts():
            run.measure(
                found,
                [case.tiny() for case in chosen] if tiny else chosen,
                participants.participants(kernels["vllm"], kernels["aiter"]),
                device,
                sizes=run.TINY if tiny else run.WHOLE,
                budget=budget,
                started=started,
                save=save,
                console=console,
                fatal=fatal,
            )
    except KeyboardInterrupt:
        save(found)
        console.print(f"interrupted: {len(found.cases)} cases measured, {len(found.unmeasured)} not")
        sys.exit(130)
    except run.DeviceError as error:
        save(found)
        raise click.ClickException(str(error)) from error
    if found.host_us:
        console.print("host, us per call: " + ", ".join(f"{name} {us:.0f}" for name, us in found.host_us.items()))
    if found.unmeasured:
        console.print(f"no time left for {', '.join(found.unmeasured)}; --budget gives more")


@cli.command()
@click.option("--check", is_flag=True, help="Write nothing; exit 1 if the page is not what the files make.")
def page(check: bool) -> None:
    """Write docs/generated/performance.md, the page of drawn shapes, and their pictures, from the JSON files beside them."""
    from benchmarks.speed import drawn_page, page

    try:
        fixed, drawn = page.read(), drawn_page.read()
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    if not fixed and not drawn:
        raise click.UsageError(
            f"{page.FOLDER} holds no JSON file: on a GPU `python -m benchmarks speed --json FILE` writes one"
        )
    written = (page.contents(fixed) if fixed else {}) | (drawn_page.contents(drawn) if drawn else {})
    stale = [path for path, text in written.items() if not path.is_file() or path.read_text(encoding="utf-8") != text]
    if check and stale:
        raise click.ClickException(f"not current: {', '.join(map(str, stale))}; python -m benchmarks page writes them")
    for path in stale:
        path.write_text(written[path], encoding="utf-8")


if __name__ == "__main__":
    cli()
