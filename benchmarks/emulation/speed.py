"""How fast the emulator runs: fixed small launches, in seconds of the CPU. In a process without Triton's interpreter."""

import platform
import time
from collections.abc import Iterator
from typing import NamedTuple

import torch
from attn_amdgcn import Schedule, load, prepare
from attn_contract import Layer, Layout
from attn_fuzz.emulated.compilation import compiled_kernel, launchable
from attn_fuzz.emulated.compiler import Ready
from attn_fuzz.emulated.emulation import run_ready
from attn_optimized.attention import paged_attention_calls, plan_of
from attn_optimized.kernel_call import KernelCall
from attn_optimized.kv_cache import write_kv_cache_call

from benchmarks.emulation.speeds import Speed, Speeds
from benchmarks.speed.calls import attention_call
from benchmarks.speed.cases import Attention
from benchmarks.speed.latent import latent_call
from benchmarks.speed.latent_cases import LatentCase

ARCHITECTURES = ("gfx942", "gfx1201")
COMPUTE_UNITS, SEED, TIMES = 8, 1, 3
DECODE = Attention(name="decode", query_lens=(1, 1), seq_lens=(600, 130), num_heads=8, num_kv_heads=1)
PREFILL = Attention(name="prefill", query_lens=(90, 31), seq_lens=(90, 64), num_heads=8, num_kv_heads=2)
LATENT = LatentCase(name="latent decode", query_lens=(1, 1), seq_lens=(70, 40), num_heads=16)


class _Named(NamedTuple):
    name: str
    call: KernelCall


def measured() -> Speeds:
    """Run all launches."""
    rows = [_speed(architecture, *named) for architecture in ARCHITECTURES for named in _launches(architecture)]
    return Speeds(f"{_processor()}, Python {platform.python_version()}", tuple(rows))


def _speed(architecture: str, name: str, call: KernelCall) -> Speed:
    named = call.arguments | call.launch.constants | call.launch.options
    binary, source = compiled_kernel(call.launch.kernel, architecture, **named)
    compiled = launchable(binary, source)
    ready = Ready(prepare(load(compiled.text)), compiled)
    instructions, seconds = _fastest(ready, call, Schedule())
    return Speed(architecture, name, instructions, seconds, _fastest(ready, call, Schedule(races=True))[1])


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
    gpu = {"architecture": architecture, "compute_units": COMPUTE_UNITS}
    for case in (DECODE, PREFILL):
        call = attention_call(case, cpu, SEED)
        out, plan = torch.empty_like(call.q), plan_of(call.q, call.layer, call.batch, **gpu)
        assert call.kv_cache is not None
        calls = paged_attention_calls(call.q, call.kv_cache, call.layer, call.batch, plan, out=out)
        yield from map(_Named, (case.name, "reduce"), calls)
    yield _Named("write", _write(architecture))
    latent = latent_call(LATENT, cpu, SEED)
    plan = plan_of(latent.q, latent.layer, latent.batch, **gpu)
    first, *_ = paged_attention_calls(latent.q, latent.kv_cache, latent.layer, latent.batch, plan, out=latent.new_output())
    yield _Named(LATENT.name, first)


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
