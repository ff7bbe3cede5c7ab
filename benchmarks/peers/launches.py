"""The launches that each participant would make for a case: in a process without Triton's interpreter.

Our launches are known before they run. A peer's wrapper is called, and its launches are kept instead of run.
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple
from unittest import mock

import torch
from attn_binaries.architectures import ARCHITECTURES
from attn_fuzz.emulated.compilation import compiled_kernel
from attn_optimized.kernel_call import KernelCall
from triton import JITFunction

from benchmarks.participants.attention import AITER, OURS, VLLM, aiter_triton, vllm_triton
from benchmarks.participants.launches import launches
from benchmarks.participants.loading import load_aiter, load_vllm
from benchmarks.steps.calls import Call

_PEERS = {VLLM: (load_vllm, vllm_triton), AITER: (load_aiter, aiter_triton)}


class Launch(NamedTuple):
    """kernel[grid](*arguments, **named), which has not happened.

    Attributes:
        kernel: a function after triton.jit.
        grid: programs, or a function of the arguments that returns them, as Triton allows.
    """

    kernel: Any
    grid: Sequence[int] | Callable[[dict[str, Any]], Sequence[int]]
    arguments: tuple[Any, ...]
    named: dict[str, Any]


class Launches(NamedTuple):
    """A participant's launches for a call, in order, and the rows [T, H, D] that they write."""

    all: list[Launch]
    out: torch.Tensor


def launches_of(call: Call, architecture: str, whose: str, folder: Path | None) -> Launches:
    """A participant's launches for a call on an architecture.

    Raises:
        UnsupportedError: it cannot express the call.
    """
    return ours(call, architecture) if whose == OURS else theirs(call, whose, _loaded(whose, folder, architecture))


def ours(call: Call, architecture: str) -> Launches:
    """This project's launches: the attention kernel, and the kernels that follow it."""
    out, units = torch.empty_like(call.q), ARCHITECTURES[architecture].compute_units
    return Launches([_launch(each) for each in launches(call, out=out, architecture=architecture, compute_units=units)], out)


def _launch(call: KernelCall) -> Launch:
    of = call.launch
    return Launch(of.kernel, of.grid, (), call.arguments | of.constants | of.options)


def theirs(call: Call, whose: str, module: SimpleNamespace) -> Launches:
    """The launches of a peer's wrapper, with all arguments.

    Raises:
        UnsupportedError: it cannot express the case.
    """
    prepared = _PEERS[whose][1](module, call)
    with _recorded() as found:
        returned = prepared.run()
    return Launches(found, prepared.output(returned))


@functools.lru_cache
def _loaded(whose: str, folder: Path | None, architecture: str) -> SimpleNamespace:
    return _PEERS[whose][0](folder, architecture)


@contextmanager
def _recorded() -> Iterator[list[Launch]]:
    """While it lasts, launches of Triton's kernels are kept, and none happens."""
    kept: list[Launch] = []

    def keep(kernel: JITFunction, *arguments: Any, grid: Any, warmup: bool, **named: Any) -> None:
        kept.append(Launch(kernel, grid, arguments, named))

    with mock.patch.object(JITFunction, "run", keep):
        yield kept


def compiled(architecture: str, launch: Launch) -> Any:
    return compiled_kernel(launch.kernel, architecture, *launch.arguments, **launch.named)
