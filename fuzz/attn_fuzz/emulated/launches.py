"""Launches of interpreted kernels of any origin: another process compiles them for AMD, and the code is emulated.

Gluon kernels have no interpreter, and are launched in the same way.
"""

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
from attn_amdgcn import Schedule
from attn_fuzz.emulated import permitted
from attn_fuzz.emulated.compiler import ready
from attn_fuzz.emulated.emulation import EVERYTHING, LARGE, Inputs, inputs_of, pointer, run
from attn_fuzz.emulated.jobs import Job, architecture
from attn_fuzz.interpreted import launched
from attn_optimized.miscompiled import refuse_miscompiled

MAX_WATCHED = 1 << 30
"""Bytes of the largest storage whose elements have rights of their own: each right takes four bytes."""


@dataclass(frozen=True)
class Launches:
    """Launches of interpreted kernels that are to be compiled and emulated.

    Args:
        modules: what returns the modules that have the kernels, as of `Job`.
        architecture: to compile for.
        schedules: draws the orders of waves and workgroups in which a launch runs.
        whole_storages: True if the code may touch all of its tensors' storages. Else it may touch what the running call may,
            unless a storage has more than MAX_WATCHED bytes.
        large_storages: True if the code is compiled for storages that 32 bits do not address.
    """

    modules: str
    architecture: str
    schedules: Callable[[], Sequence[Schedule]]
    whole_storages: bool
    large_storages: bool = False

    @contextmanager
    def emulated(self) -> Iterator[None]:
        """While this lasts, each launch of an interpreted kernel or of a Gluon kernel compiles it, and emulates the code.

        Raises (as the launches do):
            Violation: the code did what it must not do.
            CompilerError: the compiler refused the kernel.
            MiscompiledError: the compiler made wrong code of it.
            attn_amdgcn.AmdgcnError: the code holds what the emulator does not know.
        """
        from triton.experimental.gluon._runtime import GluonJITFunction
        from triton.runtime.interpreter import InterpretedFunction

        def run(kernel: Any, *arguments: Any, **options: Any) -> None:
            self._launch(kernel, *arguments, **options)

        before = architecture.set(self.architecture)
        try:
            with mock.patch.object(InterpretedFunction, "run", run), mock.patch.object(GluonJITFunction, "run", run):
                yield
        finally:
            architecture.reset(before)

    def job(
        self, kernel: Any, values: Mapping[str, Any], named: Mapping[str, Any], is_large: Callable[[torch.Tensor], bool]
    ) -> Job:
        """The job that compiles a launch.

        Args:
            values: the argument of each parameter of the kernel.
            named: the arguments that the launch names: some of these, and the compiler's options.
            is_large: True if 32 bits do not address a tensor's storage.
        """
        options = {name: value for name, value in named.items() if name not in kernel.arg_names}
        given = {
            name: pointer(value, LARGE if is_large(value) else None) if isinstance(value, torch.Tensor) else value
            for name, value in values.items()
        }
        return Job(kernel.fn.__module__, kernel.fn.__name__, self.architecture, given | options, self.modules)

    def _launch(self, kernel: Any, *arguments: Any, grid: Any, warmup: bool, **named: Any) -> None:
        if warmup:
            return
        values = values_of(kernel, arguments, named)
        programs: Sequence[int] = grid(values) if callable(grid) else grid  # pyright: ignore[reportAssignmentType]
        if 0 in programs:
            return
        launched.count(kernel)
        job = self.job(kernel, values, named, lambda tensor: self.large_storages)
        program, compiled = ready(job)
        refuse_miscompiled(compiled.text, self.architecture)
        is_whole = self.whole_storages or any(_storage_bytes(value) > MAX_WATCHED for value in values.values())
        held = {} if is_whole else values
        with permitted.launch(job.kernel, self.architecture, held) as regions:
            inputs = inputs_of(values, programs, compiled.names, regions)
            if is_whole:
                inputs = _with_whole_storages(inputs)
            inputs.arguments.extend([None] * compiled.scratch)
            run(program, inputs, lds_bytes=compiled.lds_bytes, schedules=self.schedules())


def values_of(kernel: Any, arguments: tuple[Any, ...], named: Mapping[str, Any]) -> dict[str, Any]:
    """The value of each parameter of a kernel in a launch."""
    parameters = inspect.signature(kernel.fn).parameters.items()
    defaults = {name: each.default for name, each in parameters if each.default is not inspect.Parameter.empty}
    by_name = {name: value for name, value in named.items() if name in kernel.arg_names}
    return defaults | dict(zip(kernel.arg_names, arguments, strict=False)) | by_name


def _storage_bytes(value: Any) -> int:
    return value.untyped_storage().nbytes() if isinstance(value, torch.Tensor) else 0


def _with_whole_storages(inputs: Inputs) -> Inputs:
    """The code may touch all of its tensors' storages: kernels of others read the rest of a block table's row.

    What they write there, the case's guards show.
    """
    return inputs._replace(permitted=EVERYTHING)
