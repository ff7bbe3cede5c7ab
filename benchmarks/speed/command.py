"""`python -m benchmarks speed`: our kernels beside others."""

import dataclasses
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click
from attn_parity.console import notes, results
from attn_parity.files import check_writable
from attn_parity.options import seconds_option

from benchmarks import options
from benchmarks.measuring.clock import Budget
from benchmarks.measuring.device import saved_at_the_end, use_device

if TYPE_CHECKING:
    from benchmarks.steps.cases import Case


CLASSES = ("attention", "latent", "rows", "index", "host")


@click.command("speed")
@options.json_option("after each case")
@options.only_option("cases")
@click.option(
    "--class",
    "of_class",
    type=click.Choice(CLASSES),
    help="Only cases of this class; `host` is what a call costs Python. Default: all; of drawn cases `attention`.",
)
@options.drawn_options
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
@seconds_option("--budget", 360.0, "Stop after this many seconds.")
@options.vllm_option
@options.aiter_option
@click.option(
    "--before",
    type=click.Path(path_type=Path),
    help="A folder with an earlier version of this project, which `git worktree add` makes.",
)
@options.commit_option
@options.tiny_option("A few requests of some tens of keys, on a CPU too")
@click.option("--write", "writes", is_flag=True, help="Keep the run in docs/generated/performance.json, and write the page.")
@click.option("--page", "page_alone", is_flag=True, help="Measure nothing: write performance.md of performance.json.")
def command(
    json_file: Path | None,
    only: tuple[str, ...],
    of_class: str | None,
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
    writes: bool,
    page_alone: bool,
) -> None:
    """Measure our kernels, PyTorch's, and vLLM's and AITER's Triton kernels where they are, in one run.

    Cases named MLA are of latent attention. The floor of a case is the longer of moving its bytes at the rate of a copy and
    computing its FLOPs at the rate of a matrix product, both measured in the same run. With --before, our kernels as they were
    are one more, and a line for each kind of traffic says how much faster they are now.
    """
    if page_alone:
        from benchmarks.speed import page

        page.write()
        return
    whole = Budget(time.monotonic(), budget)
    options.check_drawn(number, seed)
    if writes and tiny:
        raise click.UsageError("--tiny: its results have no value, so nothing is written with --write")
    device = use_device(tiny=tiny)
    from benchmarks.measuring import machine
    from benchmarks.participants.everybody import Given, everybody
    from benchmarks.speed import ahead, page, run
    from benchmarks.speed.results import Run

    check_writable(page.DATA if writes else None, "--write")
    chosen = [] if of_class == "host" else options.cases_named(_cases(of_class, number, seed), only)
    given = Given(vllm, aiter, before, values_to_try(tried))
    participants, versions = everybody(given, notes.print)
    fatal = ahead.compile_ahead(chosen, compilers, given) if compilers and device.type == "cuda" else {}
    found = Run.begun(device, versions, commit, tiny=tiny, rates=machine.rates(device, tiny=tiny))
    results.print(str(found.rates))
    with saved_at_the_end(
        lambda: found.write(json_file), lambda: f"{len(found.cases)} cases measured, {len(found.unmeasured)} not"
    ):
        tasks = [case.tiny() for case in chosen] if tiny else chosen
        sizes = run.TINY if tiny else run.WHOLE
        host = of_class in (None, "host")
        run.measure(found, tasks, participants, device, sizes=sizes, budget=whole, host=host, json_file=json_file, fatal=fatal)
    for line in run.gains(found.cases):
        results.print(line)
    if found.host_us:
        results.print("host, us per call: " + ", ".join(f"{name} {us:.0f}" for name, us in found.host_us.items()))
    if found.unmeasured:
        results.print(f"no time left for {', '.join(found.unmeasured)}; --budget gives more")
    if writes:
        page.write(found)


def _cases(of_class: str | None, number: int | None, seed: int | None) -> "list[Case]":
    """The fixed cases of a class, or of all; or drawn ones.

    Raises:
        click.UsageError: no case of the class is drawn.
    """
    from benchmarks.steps import cases, latent
    from benchmarks.steps.drawn import draw_cases, draw_index

    if number is None or seed is None:
        return [case for case in (*cases.CASES, *latent.CASES) if of_class in (None, cases.class_of(case))]
    if of_class not in (None, "attention", "index"):
        raise click.UsageError(f"--class {of_class}: its cases are fixed, so leave out --drawn and --seed")
    return [*(draw_index if of_class == "index" else draw_cases)(number, seed)]


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
