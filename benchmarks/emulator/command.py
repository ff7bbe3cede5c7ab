"""`python -m benchmarks emulator`: how fast the emulator runs fixed small launches."""

import platform
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import click
import torch
from attn_amdgcn import Schedule, load, prepare
from attn_contract import Layer, Layout
from attn_fuzz.emulated.compilation import compiled_kernel, launchable
from attn_fuzz.emulated.compiler import Ready
from attn_fuzz.emulated.emulation import run_ready
from attn_optimized.kernel_call import KernelCall
from attn_optimized.kv_cache import write_kv_cache_call
from attn_parity.console import results
from attn_parity.options import plain_table

from benchmarks.speed.calls import attention_call
from benchmarks.speed.cases import Attention
from benchmarks.speed.latent import latent_case
from benchmarks.speed.launches import launches

ARCHITECTURES = ("gfx942", "gfx1201")
COMPUTE_UNITS, SEED, TIMES = 8, 1, 3
DECODE = Attention(name="decode", query_lens=(1, 1), seq_lens=(600, 130), num_heads=8, num_kv_heads=1)
PREFILL = Attention(name="prefill", query_lens=(90, 31), seq_lens=(90, 64), num_heads=8, num_kv_heads=2)
LATENT = latent_case("latent decode", (1, 1), (70, 40))


class _Named(NamedTuple):
    name: str
    call: KernelCall


@click.command()
def emulator() -> None:
    """Time the emulator: millions of wave instructions per CPU second, without and with the search for races."""
    columns = ("architecture", "launch", "wave instructions", "M/s", "M/s with races")
    shown = plain_table(*columns, right=columns[2:])
    for architecture in ARCHITECTURES:
        for name, call in _launches(architecture):
            named = call.arguments | call.launch.constants | call.launch.options
            compiled = launchable(*compiled_kernel(call.launch.kernel, architecture, **named))
            ready = Ready(prepare(load(compiled.text)), compiled)
            rates = {races: _fastest(ready, call, Schedule(races=races)) for races in (False, True)}
            row = (f"{count / seconds / 1e6:.2f}" for count, seconds in rates.values())
            shown.add_row(architecture, name, f"{rates[False][0]:,}", *row)
    results.print(shown)
    results.print(f"{_processor()}, Python {platform.python_version()}")


def _fastest(ready: Ready, call: KernelCall, schedule: Schedule) -> tuple[int, float]:
    """Wave instructions of a launch, and the seconds of its fastest run."""
    instructions, seconds = 0, []
    for _ in range(TIMES):
        begin = time.process_time()
        instructions = run_ready(ready, call.arguments, call.launch.grid, schedules=(schedule,)).wave_instructions
        seconds.append(time.process_time() - begin)
    return instructions, round(min(seconds), 4)


def _launches(architecture: str) -> Iterator[_Named]:
    cpu = torch.device("cpu")
    gpu: dict[str, Any] = {"architecture": architecture, "compute_units": COMPUTE_UNITS}
    for case in (DECODE, PREFILL, LATENT):
        call = attention_call(case, cpu, SEED)
        out = call.q.new_empty(*call.q.shape[:2], case.value_size)
        yield from map(_Named, (case.name, f"{case.name}, reduction"), launches(call, out=out, **gpu))
    yield _Named("write", _write(architecture))


def _write(architecture: str) -> KernelCall:
    generator = torch.Generator().manual_seed(SEED)
    k, v = torch.randn((2, 100, 2, 128), generator=generator).to(torch.bfloat16)
    layer = Layer(num_heads=8, num_kv_heads=2, head_size=128, scale=1.0, layout=Layout.BLOCKS_FIRST_NHD)
    slots = torch.randperm(128, generator=generator)[:100]
    return write_kv_cache_call(
        k, v, torch.zeros((8, 2, 16, 2, 128), dtype=torch.bfloat16), layer, slots, architecture=architecture
    )


def _processor() -> str:
    with open("/proc/cpuinfo", encoding="utf-8") as lines:
        names = [line.partition(": ")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
