"""The launches of AMD's GPUs, compiled and emulated: what the compiler made of the kernels runs, not the kernels' source.

This project's host code plans for the architecture as it would there. A compiled kernel is kept, and cases that share a layer
share it.
"""

import contextlib
import dataclasses
import functools
import importlib.util
import random
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from attn_contract import Batch, Layer
from attn_fuzz import extras
from attn_fuzz.cases.tensors import Step
from attn_fuzz.findings.finding import Finding
from attn_fuzz.targets.choices import choices_by
from attn_fuzz.targets.target import EVERYTHING, Support, Target
from attn_fuzz.targets.triton import TRITON, missing_triton
from attn_fuzz.targets.triton import planned as planned_for
from attn_fuzz.verdict.rounding import Rounding

if TYPE_CHECKING:
    from attn_amdgcn import Schedule
    from attn_optimized.kernel_call import KernelCall
    from attn_optimized.launch.plan import AttentionPlan

MOST_PARTS = 64
KEYS_PER_TILE = 16
"""The least of this project's launches for AMD."""
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


@functools.cache
def _support(architecture: str) -> Support:
    return dataclasses.replace(
        EVERYTHING,
        max_tokens=128,
        max_seq_len=256,
        head_sizes=(64, 80, 128),
        steps_per_layer=STEPS_PER_LAYER,
        own_numbers=True,
    )


def missing(device: str) -> str | None:
    """Why nothing can be emulated here; None if it can."""
    if device != "cpu":
        return "it emulates a GPU that is not here: --device cpu"
    if importlib.util.find_spec("yaml") is None:
        return extras.missing("yaml")
    return None


def _missing(device: str, architecture: str) -> str | None:
    if reason := missing(device) or missing_triton(device):
        return reason
    from attn_optimized.device import missing_compiler

    return missing_compiler(architecture)


def _emulate(call: "KernelCall", architecture: str, layer: Layer, choose: random.Random) -> None:
    from attn_fuzz.emulated import permitted
    from attn_fuzz.emulated.emulation import LARGE, emulate

    sizes = dict.fromkeys(call.tensors, LARGE) if _is_large(layer) else None
    with permitted.launch(call.launch.kernel.fn.__name__, architecture, call.tensors) as regions:
        emulate(call, architecture, schedules=schedules(choose), sizes=sizes, regions=regions)


def _is_large(layer: Layer) -> bool:
    group = layer.num_heads // layer.num_kv_heads
    fields = (group, layer.head_size, layer.value_size, layer.attn_type.value, layer.layout, layer.kv_cache_dtype)
    return choices_by(fields).random() < LARGE_SHARE


def emulated(architecture: str) -> Target:
    """The shipping kernels on an architecture of AMD, by its name in LLVM."""

    def planned(q: torch.Tensor, layer: Layer, batch: Batch) -> "AttentionPlan":
        import attn_optimized

        with planned_for(architecture):
            return attn_optimized.plan_of(q, layer, batch)

    def attention(q, k, v, kv_cache, layer, batch, *, out, lse) -> None:
        from attn_optimized.attention import paged_attention_calls, varlen_attention_calls

        choose = choices_by((batch.query_start_loc, batch.seq_lens))
        plan = planned(q, layer, batch)
        with planned_for(architecture):
            if layer.attn_type.reads_cache:
                calls = paged_attention_calls(q, kv_cache, layer, batch, plan, out=out, lse=lse)
            else:
                calls = varlen_attention_calls(q, k, v, layer, batch, plan, out=out, lse=lse)
        for call in calls:
            _emulate(call, architecture, layer, choose)

    def write(k, v, kv_cache, layer, slot_mapping) -> None:
        from attn_optimized.kv_cache import write_kv_cache_call

        call = write_kv_cache_call(k, v, kv_cache, layer, slot_mapping, architecture=architecture)
        _emulate(call, architecture, layer, choices_by(slot_mapping))

    def rope(q, k, v, positions, cos_sin_cache, kv_cache, layer, slot_mapping, *, is_neox) -> None:
        from attn_optimized.kv_cache import rope_and_write_kv_cache_call

        tensors = (q, k, v, positions, cos_sin_cache, kv_cache)
        call = rope_and_write_kv_cache_call(*tensors, layer, slot_mapping, is_neox=is_neox, architecture=architecture)
        _emulate(call, architecture, layer, choices_by(slot_mapping))

    def events(step: Step) -> list[str]:
        return ["split"] if planned(step.q, step.layer, step.batch).splits > 1 else []

    return Target(
        name=f"triton-{architecture}",
        description=f"the shipping Triton kernels compiled for {architecture}, the code emulated",
        attention=attention,
        write_kv_cache=write,
        rope_and_write_kv_cache=rope,
        support=lambda device: _support(architecture),
        refuses=False,
        rounding=lambda device: Rounding(
            keys_per_tile=KEYS_PER_TILE, dot_is_chained=True, splits=MOST_PARTS, exact_division=True
        ),
        unavailable=lambda device: _missing(device, architecture),
        events=events,
        forget=TRITON.forget,
        compiles=True,
    )


def compiled_for(target: Target, value: str, architecture: str) -> Target:
    """A target whose kernels are compiled for an architecture of AMD, and emulated.

    Args:
        value: module and attribute of the target, as its entry point has them. Another process loads its kernels by them.
    """
    is_planned = target.planned is not None

    def emulating(function: Callable[..., Any]) -> Any:
        @functools.wraps(function)
        def call(*arguments: Any, **options: Any) -> Any:
            from attn_fuzz.emulated.launches import Launches

            launches = Launches(
                f"{value}.modules",
                architecture,
                functools.partial(schedules, _choices(arguments), races=target.races is None),
                whole_storages=not is_planned,
            )
            planned = target.planned(architecture) if target.planned else contextlib.nullcontext()
            with planned, launches.emulated():
                return function(*arguments, **options)

        return call

    def support(device: str) -> Support:
        declared = target.support(device)
        has_xf32 = architecture in _WITH_XF32 and not is_planned
        dtypes = tuple(dtype for dtype in declared.dtypes if dtype != "float32" or not has_xf32)
        steps = max(STEPS_PER_LAYER, declared.steps_per_layer)
        return dataclasses.replace(declared, dtypes=dtypes, steps_per_layer=steps, own_numbers=is_planned)

    def rounding(device: str) -> Rounding:
        declared = target.rounding("cuda")
        return dataclasses.replace(declared, keys_per_tile=KEYS_PER_TILE) if is_planned else declared

    functions = {field: function for field in _FUNCTIONS if (function := getattr(target, field)) is not None}
    return dataclasses.replace(
        target,
        name=f"{target.name}@{architecture}",
        description=f"{target.description}: compiled for {architecture}, the code emulated",
        support=support,
        rounding=rounding,
        unavailable=lambda device: _missing(device, architecture) or target.unavailable(device),
        siblings=tuple(emulating(sibling) for sibling in target.siblings),
        compiles=True,
        sanitizes=False,
        exact=False,
        **{field: emulating(function) for field, function in functions.items()},
    )


def with_architecture(
    name: str,
    description: str,
    *,
    architectures: Sequence[str],
    attention: Callable[..., None],
    support: Callable[[str], Support],
    rounding: Callable[[str], Rounding],
    missing: Callable[[str, str], str | None],
    events: Callable[[str, Step], Iterable[str]] = lambda architecture, step: (),
    findings: tuple[Finding, ...] = (),
) -> Target:
    """A target of code that is not Triton's, such as assembly, which runs as NAME@ARCHITECTURE alone.

    Args:
        architectures: those that its code is written for. What it supports on the first is what NAME says of itself.
        attention, support, rounding, events: as of Target, with the architecture before the other arguments.
        missing: of an architecture among these and a device, why it cannot run there.
        findings: of NAME@ARCHITECTURE: the pages of findings have scripts for Triton's kernels alone.
    """
    needed = f"name an architecture, as in --target {name}@{architectures[0]}"

    def on(architecture: str) -> Target:
        def unavailable(device: str) -> str | None:
            if architecture not in architectures:
                return f"{name} has nothing for {architecture}, but for {', '.join(architectures)}"
            return missing(architecture, device)

        return dataclasses.replace(
            base,
            name=f"{name}@{architecture}",
            description=f"{description}: for {architecture}, emulated",
            attention=functools.partial(attention, architecture),
            support=lambda device: support(architecture),
            rounding=lambda device: rounding(architecture),
            unavailable=unavailable,
            events=functools.partial(events, architecture),
            findings=findings,
        )

    def needs_architecture(*arguments: object, **outputs: object) -> None:
        raise NotImplementedError(needed)

    base = Target(
        name=name,
        description=description,
        attention=needs_architecture,
        support=lambda device: support(architectures[0]),
        refuses=False,
        rounding=lambda device: rounding(architectures[0]),
        unavailable=lambda device: "; ".join(filter(None, (missing(architectures[0], device), needed))),
        compiled_for=on,
        compiles=True,
    )
    return base


def schedules(choose: random.Random, *, races: bool = True) -> "list[Schedule]":
    """Orders of what a launch may run in any order: one, or for a share of the launches two, with other junk.

    Args:
        races: whether races are looked for in a launch that runs in two orders.
    """
    from attn_amdgcn import Schedule

    first = Schedule(seed=choose.randrange(1 << 31))
    if choose.random() >= CHECKED:
        return [first]
    another = Schedule(choose.choice(_ORDERS), choose.choice(_ORDERS), choose.randrange(1 << 31))
    return [dataclasses.replace(first, races=races), another]


def _choices(arguments: Iterable[object]) -> random.Random:
    """What draws the schedules of a call's launches: by the call's metadata, so that a case depends on itself alone."""
    metadata: list[torch.Tensor] = []
    for argument in arguments:
        if isinstance(argument, Batch):
            metadata += [argument.query_start_loc, argument.seq_lens]
        elif isinstance(argument, torch.Tensor) and argument.dtype in (torch.int32, torch.int64):
            metadata.append(argument)
    return choices_by(metadata)


TRITON_GFX90A = emulated("gfx90a")
TRITON_GFX942 = emulated("gfx942")
TRITON_GFX950 = emulated("gfx950")
TRITON_GFX1100 = emulated("gfx1100")
TRITON_GFX1201 = emulated("gfx1201")
TRITON_GFX1250 = emulated("gfx1250")
