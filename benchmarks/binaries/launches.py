"""Who would launch which kernels for a case, and what the compiler makes of them: in a process without Triton's interpreter.

Ours are known before they are launched. A peer's wrapper is called with tensors on meta, and what it launches is kept instead.
"""

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from attn_contract import UnsupportedError
from attn_fuzz.emulated.compilation import compiled_kernel
from attn_optimized.attention import paged_attention_calls, plan_of, varlen_attention_calls
from attn_optimized.cascade import cascade_attention_calls
from attn_optimized.kernel_call import KernelCall
from attn_parity.binaries.architectures import ARCHITECTURES
from attn_parity.binaries.facts import facts_of
from triton import JITFunction

from benchmarks.binaries.results import Row
from benchmarks.speed.calls import FLOAT8, FLOAT8_OF, Call, attention_call
from benchmarks.speed.cases import CASES, Attention
from benchmarks.speed.participants import AITER, OURS, VLLM, aiter_triton, vllm_triton
from benchmarks.speed.peers import load_aiter, load_vllm

META, SEED = torch.device("meta"), 1
_PEERS = {VLLM: (load_vllm, vllm_triton), AITER: (load_aiter, aiter_triton)}


class Launch(NamedTuple):
    """kernel[grid](*arguments, **named), which has not happened.

    Attributes:
        grid: programs, or a function of the arguments that returns them, as Triton allows.
    """

    kernel: JITFunction
    grid: Any
    arguments: tuple[Any, ...]
    named: dict[str, Any]


class Launches(NamedTuple):
    """What a participant launches for a call, in its order, and the rows [T, H, D] that it writes."""

    all: list[Launch]
    out: torch.Tensor


def compiled_case(architecture: str, name: str, whose: str, folder: Path | None) -> tuple[Row, ...]:
    """The binaries of a participant's launches in a case, in their order; none of what it refuses.

    Args:
        folder: a peer's, see `benchmarks.speed.peers`.
    """
    case = next(case for case in CASES if case.name == name)
    assert isinstance(case, Attention)
    call = attention_call(case, META, SEED, FLOAT8_OF.get(architecture, FLOAT8))
    try:
        launches = launches_of(call, architecture, whose, folder)
    except UnsupportedError:
        return ()
    return tuple(_row(architecture, name, whose, launch) for launch in launches.all)


def launches_of(call: Call, architecture: str, whose: str, folder: Path | None) -> Launches:
    """What a participant launches for a call on an architecture.

    Raises:
        UnsupportedError: it cannot express the call.
    """
    return ours(call, architecture) if whose == OURS else theirs(call, whose, _loaded(whose, folder, architecture))


def ours(call: Call, architecture: str) -> Launches:
    """Of the attention kernel, and of what follows it."""
    layer, batch, out = call.layer, call.batch, torch.empty_like(call.q)
    gpu: dict[str, Any] = {"architecture": architecture, "compute_units": ARCHITECTURES[architecture].compute_units}
    if call.kv_cache is not None and call.case.common_prefix_len:
        calls = cascade_attention_calls(call.q, call.kv_cache, layer, batch, call.case.common_prefix_len, out=out, **gpu)
    elif call.kv_cache is not None:
        calls = paged_attention_calls(call.q, call.kv_cache, layer, batch, plan_of(call.q, layer, batch, **gpu), out=out)
    else:
        assert call.k is not None
        assert call.v is not None
        calls = varlen_attention_calls(call.q, call.k, call.v, layer, batch, plan_of(call.q, layer, batch, **gpu), out=out)
    return Launches([_launch(each) for each in calls], out)


def _launch(call: KernelCall) -> Launch:
    of = call.launch
    return Launch(of.kernel, of.grid, (), call.arguments | of.constants | of.options)


def theirs(call: Call, whose: str, module: SimpleNamespace) -> Launches:
    """What a peer's wrapper launches, with all that it passes.

    Raises:
        UnsupportedError: it cannot express the case.
    """
    prepared = _PEERS[whose][1](module, call)
    with _recorded() as launches:
        returned = prepared.run()
    return Launches(launches, prepared.output(returned))


@functools.lru_cache
def _loaded(whose: str, folder: Path | None, architecture: str) -> SimpleNamespace:
    return _PEERS[whose][0](folder, architecture)


@contextmanager
def _recorded() -> Iterator[list[Launch]]:
    """While it lasts, launches of Triton's kernels are kept, and none happens."""
    launches: list[Launch] = []

    def keep(kernel: JITFunction, *arguments: Any, grid: Any, warmup: bool, **named: Any) -> None:
        launches.append(Launch(kernel, grid, arguments, named))

    run = JITFunction.run
    JITFunction.run = keep
    try:
        yield launches
    finally:
        JITFunction.run = run


def _row(architecture: str, case: str, whose: str, launch: Launch) -> Row:
    row = Row(architecture, case, whose, launch.kernel.fn.__name__)
    try:
        binary, _ = compiled_kernel(launch.kernel, architecture, *launch.arguments, **launch.named)
    except Exception as error:  # whatever a compiler raises is the result
        return row.without(f"{type(error).__name__}: {error}")
    return row.of(binary.metadata.num_warps, facts_of(binary, architecture))
