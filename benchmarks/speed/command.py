"""`python -m benchmarks speed`: our kernels beside others."""

import dataclasses
import time
from pathlib import Path

import click
from attn_parity.console import notes, results
from attn_parity.options import seconds_option

from benchmarks import options
from benchmarks.measuring.clock import Budget
from benchmarks.measuring.device import saved_at_the_end, use_device


@click.command("speed")
@options.json_option("after each case")
@options.only_option("cases")
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
def command(
    json_file: Path | None,
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
    whole = Budget(time.monotonic(), budget)
    options.check_drawn(number, seed)
    device = use_device(tiny=tiny)
    from benchmarks.measuring import machine
    from benchmarks.participants.everybody import Given, everybody
    from benchmarks.speed import ahead, run
    from benchmarks.speed.results import Run
    from benchmarks.steps import cases, latent
    from benchmarks.steps.drawn import draw_cases

    named = [*cases.CASES, *latent.CASES]
    chosen = options.cases_named(named if number is None or seed is None else draw_cases(number, seed), only)
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
        run.measure(found, tasks, participants, device, sizes=sizes, budget=whole, json_file=json_file, fatal=fatal)
    for line in run.gains(found.cases):
        results.print(line)
    if found.host_us:
        results.print("host, us per call: " + ", ".join(f"{name} {us:.0f}" for name, us in found.host_us.items()))
    if found.unmeasured:
        results.print(f"no time left for {', '.join(found.unmeasured)}; --budget gives more")


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
