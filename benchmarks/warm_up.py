"""How many kernels an engine of one model compiles while it serves drawn traffic: `python -m benchmarks.warm_up`.

An engine has one model, one size of tensor parallelism, one cache, and layers of all kinds that the model has. Nothing is
compiled and no GPU is needed: what Triton would compile follows from shapes and from the plan for an architecture.
"""

import random
import statistics
from collections.abc import Hashable, Iterator
from typing import NamedTuple

import click
import torch
from attn_contract import Layout
from attn_optimized import plan_of
from attn_optimized.attention import paged_attention_calls
from attn_optimized.cascade import cascade_attention_calls
from attn_optimized.kernel_call import KernelCall
from attn_parity.binaries.architectures import ARCHITECTURES
from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmarks.speed.calls import FLOAT8, FLOAT8_OF, Call, attention_call
from benchmarks.speed.drawn import Cache, case_of, draw_step
from benchmarks.speed.models import Model, models
from benchmarks.speed.traffic import TRAFFIC

ARCHITECTURES_SHOWN = ("gfx942", "sm90")
FEW_STEPS = 20
LAYOUT, BLOCK_SIZE = Layout.BLOCKS_FIRST_NHD, 16


class Engine(NamedTuple):
    model: Model
    ranks: int
    cache: Cache


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--steps", type=click.IntRange(min=FEW_STEPS), default=100, show_default=True, help="Of each engine.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of the steps.")
def main(steps: int, seed: int) -> None:
    """Count the kernels of attention that engines of drawn models meet, over caches of 16 and of 8 bits.

    For each model, one size of tensor parallelism is drawn, and as many steps of all kinds of traffic as --steps says.
    """
    columns = ("architecture", "cache", f"kernels of {FEW_STEPS} steps, median", f"of {steps} steps, median", "most", "by")
    table = Table(*columns, box=None)
    console = Console(width=130)
    for architecture in ARCHITECTURES_SHOWN:
        for is_float8 in (False, True):
            draw = random.Random(seed)
            engines = [Engine(model, draw.choice(model.ranks), Cache(LAYOUT, BLOCK_SIZE, is_float8)) for model in models()]
            cache = "8 bits" if is_float8 else "16 bits"
            numbers = {
                engine: kernels_met(engine, architecture, steps, seed)
                for engine in track(engines, f"{architecture}, {cache}", console=console, transient=True)
            }
            few, all_steps = (statistics.median(n[i] for n in numbers.values()) for i in (0, 1))
            most = max(numbers, key=lambda engine: numbers[engine][1])
            name = f"{most.model.name} / {most.ranks}"
            table.add_row(architecture, cache, f"{few:g}", f"{all_steps:g}", str(numbers[most][1]), name)
    console.print(table)


def kernels_met(engine: Engine, architecture: str, steps: int, seed: int) -> tuple[int, int]:
    """Distinct kernels that FEW_STEPS steps of an engine launch, and that all of them do."""
    draw, met, few = random.Random(seed), set(), 0
    kinds = list(TRAFFIC)
    for i in range(steps):
        met.update(_compiled(call) for call in launches(engine, architecture, kinds[i % len(kinds)], draw))
        if i + 1 == FEW_STEPS:
            few = len(met)
    return few, len(met)


def launches(engine: Engine, architecture: str, traffic: str, draw: random.Random) -> Iterator[KernelCall]:
    """Of one drawn step: its layers of each kind."""
    model, ranks, cache = engine
    step = draw_step(draw, traffic, model, ranks, cache)
    for kind in model.layers:
        case = case_of(model.name, traffic, step, model, kind, ranks, cache)
        call = attention_call(case, torch.device("meta"), 0, FLOAT8_OF.get(architecture, FLOAT8))
        yield from _launches(call, architecture)


def _launches(call: Call, architecture: str) -> Iterator[KernelCall]:
    assert call.kv_cache is not None
    arguments = call.q, call.kv_cache, call.layer, call.batch
    gpu = {"architecture": architecture, "compute_units": ARCHITECTURES[architecture].compute_units}
    out = torch.empty_like(call.q)
    if call.case.common_prefix_len:
        return cascade_attention_calls(*arguments, call.case.common_prefix_len, out=out, **gpu)
    return paged_attention_calls(*arguments, plan_of(call.q, call.layer, call.batch, **gpu), out=out)


def _compiled(call: KernelCall) -> Hashable:
    """What Triton compiles a kernel for; tensors begin at multiples of 16 bytes."""
    launch = call.launch
    dtypes = tuple(None if tensor is None else tensor.dtype for tensor in call.tensors.values())
    return launch.kernel, dtypes, tuple(launch.constants.items()), tuple(launch.options.items())


if __name__ == "__main__":
    main()
