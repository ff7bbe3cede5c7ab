"""The launches of AMD's GPUs, compiled and emulated: what the compiler made of the kernels runs, not the kernels' source.

This project's host code plans for the architecture as it would there. A compiled kernel is kept, and cases that share a layer
share it.
"""

import dataclasses
import functools
import importlib.util
import random
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import torch
from attn_contract import Batch, Layer
from attn_fuzz import extras
from attn_fuzz.cases.tensors import Step
from attn_fuzz.interpreted.sanitizer import Violation
from attn_fuzz.targets.target import EVERYTHING, Support, Target
from attn_fuzz.targets.triton import TRITON, missing_triton
from attn_fuzz.verdict.rounding import Rounding

if TYPE_CHECKING:
    from attn_amdgcn import Schedule
    from attn_optimized.kernel_call import KernelCall
    from attn_optimized.launch.plan import AttentionPlan

COMPUTE_UNITS = 8
"""Few enough that splitting keys over them does not make more programs than are quickly emulated."""
MOST_PARTS = 64
STEPS_PER_LAYER = 8
"""Compiling takes longer than most cases."""
CHECKED = 0.3
"""The share of launches that run twice, in two orders, and in which races are looked for."""
LARGE_SHARE = 0.3
"""The share of layers whose launches are compiled for storages that 32 bits do not address. That is other code, so it is chosen
for a layer: a choice for each launch would compile most kernels twice."""
_ORDERS = ("ascending", "descending", "drawn")
_WITH_XF32 = ("gfx942",)
"""Where Triton makes XF32 of a tl.dot of float32 that does not say how. How hardware rounds to XF32 is not published."""
_FUNCTIONS = ("attention", "write_kv_cache", "write_latent_cache", "rope_and_write_kv_cache")


def _support(device: str) -> Support:
    return dataclasses.replace(
        EVERYTHING,
        max_tokens=128,
        max_seq_len=256,
        head_sizes=(64, 80, 128),
        steps_per_layer=STEPS_PER_LAYER,
    )


def _missing(device: str) -> str | None:
    if device != "cpu":
        return "it emulates a GPU that is not here: --device cpu"
    if importlib.util.find_spec("yaml") is None:
        return extras.missing("yaml")
    return missing_triton(device)


def _emulate(call: "KernelCall", architecture: str, layer: Layer, choose: random.Random) -> None:
    from attn_amdgcn import Fault, Schedule
    from attn_fuzz.emulated.emulation import LARGE, emulate

    first = Schedule(seed=choose.randrange(1 << 31))
    schedules = [first]
    if choose.random() < CHECKED:
        another = Schedule(choose.choice(_ORDERS), choose.choice(_ORDERS), choose.randrange(1 << 31))
        schedules = [dataclasses.replace(first, races=True), another]
    sizes = dict.fromkeys(call.tensors, LARGE) if _is_large(layer) else None
    try:
        emulate(call, architecture, schedules=schedules, sizes=sizes)
    except Fault as fault:  # what the sanitizer finds in interpreted kernels: a bug of the kernel, and no error of its host
        raise Violation(f"{call.launch.kernel.fn.__name__} for {architecture}: {fault}", "Fault") from fault


def _is_large(layer: Layer) -> bool:
    fields = (layer.num_heads, layer.num_kv_heads, layer.head_size, layer.scale, layer.kv_cache_dtype, layer.window)
    return random.Random(repr(fields)).random() < LARGE_SHARE


def emulated(architecture: str) -> Target:
    """The shipping kernels on an architecture of AMD, by its name in LLVM."""

    def planned(q: torch.Tensor, layer: Layer, batch: Batch) -> "AttentionPlan":
        import attn_optimized

        return attn_optimized.plan_of(q, layer, batch, architecture=architecture, compute_units=COMPUTE_UNITS)

    def attention(q, k, v, kv_cache, layer, batch, *, out, lse) -> None:
        from attn_optimized.attention import paged_attention_calls, varlen_attention_calls

        choose = random.Random(repr((batch.query_start_loc.tolist(), batch.seq_lens.tolist())))
        plan = planned(q, layer, batch)
        if layer.attn_type.reads_cache:
            calls = paged_attention_calls(q, kv_cache, layer, batch, plan, out=out, lse=lse)
        else:
            calls = varlen_attention_calls(q, k, v, layer, batch, plan, out=out, lse=lse)
        for call in calls:
            _emulate(call, architecture, layer, choose)

    def write(k, v, kv_cache, layer, slot_mapping) -> None:
        from attn_optimized.kv_cache import write_kv_cache_call

        call = write_kv_cache_call(k, v, kv_cache, layer, slot_mapping, architecture=architecture)
        _emulate(call, architecture, layer, random.Random(repr(slot_mapping.tolist())))

    def rope(q, k, v, positions, cos_sin_cache, kv_cache, layer, slot_mapping, *, is_neox) -> None:
        from attn_optimized.kv_cache import rope_and_write_kv_cache_call

        tensors = (q, k, v, positions, cos_sin_cache, kv_cache)
        call = rope_and_write_kv_cache_call(*tensors, layer, slot_mapping, is_neox=is_neox, architecture=architecture)
        _emulate(call, architecture, layer, random.Random(repr(slot_mapping.tolist())))

    def events(step: Step) -> list[str]:
        return ["split"] if planned(step.q, step.layer, step.batch).splits > 1 else []

    return Target(
        name=f"triton-{architecture}",
        description=f"the shipping Triton kernels compiled for {architecture}, the code emulated",
        attention=attention,
        write_kv_cache=write,
        rope_and_write_kv_cache=rope,
        support=_support,
        refuses=False,
        rounding=lambda device: Rounding(keys_per_tile=16, dot_is_chained=True, splits=MOST_PARTS, exact_division=True),
        unavailable=_missing,
        events=events,
        forget=TRITON.forget,
        compiles=True,
    )


def compiled_for(target: Target, value: str, architecture: str) -> Target:
    """A target whose kernels are compiled for an architecture of AMD, and emulated. Its host's code runs as it is.

    Args:
        value: module and attribute of the target, as its entry point has them. Another process loads its kernels by them.
    """

    def emulating(function: Callable[..., None]) -> Any:
        @functools.wraps(function)
        def call(*arguments: Any, **options: Any) -> None:
            from attn_fuzz.emulated.launches import emulated_launches

            with emulated_launches(f"{value}.modules", architecture, _schedule(arguments)):
                function(*arguments, **options)

        return call

    def support(device: str) -> Support:
        declared = target.support(device)
        dtypes = tuple(dtype for dtype in declared.dtypes if dtype != "float32" or architecture not in _WITH_XF32)
        return dataclasses.replace(declared, dtypes=dtypes, steps_per_layer=max(STEPS_PER_LAYER, declared.steps_per_layer))

    return dataclasses.replace(
        target,
        name=f"{target.name}@{architecture}",
        description=f"{target.description}: compiled for {architecture}, the code emulated",
        support=support,
        rounding=lambda device: target.rounding("cuda"),
        unavailable=lambda device: _missing(device) or target.unavailable(device),
        compiles=True,
        sanitizes=False,
        **{field: emulating(function) for field in _FUNCTIONS if (function := getattr(target, field)) is not None},
    )


def _schedule(arguments: Iterable[object]) -> "Schedule":
    """The order of what may run in any order: drawn by the metadata of a call, so that a case depends on itself alone.

    Races are not looked for: two programs of somebody else's kernel may write the same row, and mean to.
    """
    from attn_amdgcn import Schedule

    metadata: list[object] = []
    for argument in arguments:
        if isinstance(argument, Batch):
            metadata += [argument.query_start_loc.tolist(), argument.seq_lens.tolist()]
        elif isinstance(argument, torch.Tensor) and argument.dtype in (torch.int32, torch.int64):
            metadata.append(argument.tolist())
    choose = random.Random(repr(metadata))
    waves = choose.choice(_ORDERS) if choose.random() < CHECKED else "together"
    return Schedule(waves, choose.choice(_ORDERS), choose.randrange(1 << 31))


TRITON_GFX90A = emulated("gfx90a")
TRITON_GFX942 = emulated("gfx942")
TRITON_GFX950 = emulated("gfx950")
TRITON_GFX1100 = emulated("gfx1100")
TRITON_GFX1201 = emulated("gfx1201")
TRITON_GFX1250 = emulated("gfx1250")
