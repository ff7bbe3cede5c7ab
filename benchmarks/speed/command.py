"""`python -m benchmarks speed`: our kernels beside others; `python -m benchmarks page`: pages of what was measured."""

import time
from pathlib import Path
from types import ModuleType

import click
from rich.console import Console

from benchmarks.timed import begun, cases_named, check_options, saving, use_device

console = Console(highlight=False, width=160)


@click.command()
@click.option("--json", "path", type=click.Path(dir_okay=False, path_type=Path), help="Written after each case.")
@click.option("--only", multiple=True, help="Cases whose name holds this text; all if not given.")
@click.option("--drawn", "number", type=click.IntRange(min=1), help="So many cases of drawn models and traffic instead.")
@click.option("--seed", type=click.IntRange(min=0), help="Of the drawn cases.")
@click.option("--compilers", type=click.IntRange(min=0), default=0, help="Processes that make each call once beforehand.")
@click.option("--budget", type=click.FloatRange(min=0, min_open=True), default=360.0, show_default=True, help="Seconds.")
@click.option("--vllm", type=click.Path(path_type=Path), help="A folder that holds the package `vllm`.")
@click.option("--aiter", type=click.Path(path_type=Path), help="A folder that holds AMD's package `aiter`.")
@click.option(
    "--before", type=click.Path(path_type=Path), help="A folder with this project as it was: `git worktree add` makes one."
)
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
    before: Path | None,
    commit: str | None,
    tiny: bool,
) -> None:
    """Measure our kernels, PyTorch's, and vLLM's and AITER's Triton kernels where they are, in one run.

    With --before, our kernels as they were are one more, and a line for each kind of traffic says how much faster they are now.
    """
    started = time.monotonic()
    if (number is None) != (seed is None):
        raise click.UsageError("--drawn and --seed go together: whoever tunes needs another seed than whoever measures")
    check_options(budget, path)
    device = use_device(tiny=tiny)
    from benchmarks.speed import ahead, participants, peers, run
    from benchmarks.speed.before import gains, load_before
    from benchmarks.speed.cases import CASES
    from benchmarks.speed.drawn import draw_cases

    cases = CASES if number is None or seed is None else draw_cases(number, seed)
    chosen = cases_named(cases, only)
    try:
        kernels = {
            "vllm": peers.load_if_there(peers.load_vllm, vllm, console.print),
            "aiter": peers.load_if_there(peers.load_aiter, aiter, console.print),
        }
        earlier = before and load_before(before)
    except peers.MissingPeerError as error:
        raise click.ClickException(str(error)) from error
    fatal = {}
    if compilers and device.type == "cuda":
        fatal = ahead.compile_ahead(chosen, compilers, vllm=vllm, aiter=aiter, before=before, console=console)
    versions = {name: kernel.version for name, kernel in kernels.items() if kernel is not None}
    found = begun(device, versions, commit, console, tiny=tiny)
    with saving(found, path, console) as save:
        run.measure(
            found,
            [case.tiny() for case in chosen] if tiny else chosen,
            participants.participants(kernels["vllm"], kernels["aiter"], earlier),
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


@click.command()
@click.option("--check", is_flag=True, help="Write nothing; exit 1 if the page is not what the files make.")
def page(check: bool) -> None:
    """Write docs/generated/performance.md, the pages of drawn shapes, latent attention and the host, and their pictures.

    They are made of the JSON files in the folders beside them: performance, performance-drawn, performance-latent and
    performance-host.
    """
    from benchmarks.host import page as host_page
    from benchmarks.latent import page as latent_page
    from benchmarks.speed import drawn_page, page

    try:
        written = _pages_of(page) | _pages_of(drawn_page) | _pages_of(latent_page) | _pages_of(host_page)
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    if not written:
        raise click.UsageError(
            f"{page.FOLDER} holds no JSON file: on a GPU `python -m benchmarks speed --json FILE` writes one"
        )
    stale = [path for path, text in written.items() if not path.is_file() or path.read_text(encoding="utf-8") != text]
    if check and stale:
        raise click.ClickException(f"not current: {', '.join(map(str, stale))}; python -m benchmarks page writes them")
    for path in stale:
        path.write_text(written[path], encoding="utf-8")


def _pages_of(module: ModuleType) -> dict[Path, str]:
    """What the page of a module holds and its pictures, by path; nothing where no run was kept."""
    runs = module.read()
    return module.contents(runs) if runs else {}
