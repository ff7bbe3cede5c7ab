"""Launches as data: what a kernel is compiled for and run with, made from shapes, strides and host values alone."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple, Self

import torch
from triton import JITFunction

from attn_optimized.miscompiled import refuse_miscompiled

_ALIGNMENT = 16
"""The alignment of pointers, in bytes, that a kernel may be compiled for: that of the widest loads."""


@dataclass(frozen=True, eq=False)
class Launch:
    """A launch without its tensors: calls of one signature share it.

    Args:
        kernel: a function after triton.jit, compiled or interpreted. Its parameters are tensors, then numbers, then
            constants.
        grid: the number of programs in each dimension.
        constants: the kernel's tl.constexpr, by name.
        options: the compiler's, such as num_warps.
        numbers: the kernel's ints and floats, by name.
    """

    kernel: Any
    grid: tuple[int, ...]
    constants: dict[str, Any]
    options: dict[str, Any]
    numbers: dict[str, int | float]
    _compiled: dict[int, Callable[..., None]] = field(init=False, repr=False, default_factory=dict)
    _checked: set[tuple[int, tuple[bool, ...]]] = field(init=False, repr=False, default_factory=set)

    @classmethod
    def of(
        cls,
        kernel: Any,
        grid: tuple[int, ...],
        constants: dict[str, Any],
        options: dict[str, Any],
        /,
        **numbers: int | float,
    ) -> Self:
        """A launch whose numbers are passed as keywords."""
        return cls(kernel, grid, constants, options, numbers)

    @cached_property
    def tensor_names(self) -> tuple[str, ...]:
        """The names of the kernel's tensors, in the order of its parameters."""
        return tuple(name for name in self.kernel.arg_names if name not in self.numbers and name not in self.constants)

    @cached_property
    def _behind_tensors(self) -> list[Any]:
        """The numbers and constants, in the order of the kernel's parameters."""
        values = self.numbers | self.constants
        return [values[name] for name in self.kernel.arg_names[len(self.tensor_names) :]]

    @cached_property
    def _aligned(self) -> list[int]:
        """The indices of the tensors whose alignment the kernel is compiled for."""
        unspecialized = getattr(self.kernel, "do_not_specialize_on_alignment", ())
        return [place for place, name in enumerate(self.tensor_names) if name not in unspecialized]

    def run(self, tensors: list[torch.Tensor | None], device: torch.device) -> None:
        """Launch on tensors in the order of `tensor_names`. A grid without programs launches nothing."""
        if 0 in self.grid:
            return
        if device.type != "cuda":
            # Triton's interpreter ignores a compiler's options. A mode that compiles instead, for a GPU that is not here,
            # makes other code without them
            self.kernel[self.grid](*tensors, *self._behind_tensors, **self.options)
        elif device.index == torch.cuda.current_device():
            self._run_on_gpu(tensors, device.index)
        else:
            with torch.cuda.device(device):
                self._run_on_gpu(tensors, device.index)

    def _run_on_gpu(self, tensors: list[torch.Tensor | None], index: int) -> None:
        # In every launch Triton looks at every argument to find the compiled kernel for it. Here all arguments are alike,
        # but for the alignment of tensors.
        pointers = [None if tensor is None else tensor.data_ptr() for tensor in tensors]
        alignment = tuple([not (pointers[place] or 0) % _ALIGNMENT for place in self._aligned])
        is_aligned = False not in alignment
        if is_aligned and (launch := self._compiled.get(index)) is not None:
            launch(*pointers, *self._behind_tensors)
            return
        if torch.version.hip and (index, alignment) not in self._checked:
            code = self.kernel.warmup(*tensors, *self._behind_tensors, grid=self.grid, **self.options)
            refuse_miscompiled(code.asm["amdgcn"], code.metadata.target.arch)
            self._checked.add((index, alignment))
        compiled = self.kernel[self.grid](*tensors, *self._behind_tensors, **self.options)
        if is_aligned and isinstance(self.kernel, JITFunction):
            self._compiled[index] = compiled[(*self.grid, 1, 1)]


class KernelCall(NamedTuple):
    """A launch and its tensors, not run yet. With tensors on meta it can be compiled, but not run."""

    launch: Launch
    tensors: dict[str, torch.Tensor | None]
    """The tensors, by the names of the kernel's parameters. There may be others."""

    @property
    def arguments(self) -> dict[str, torch.Tensor | int | float | None]:
        """The arguments without the constants, by name."""
        names = self.launch.kernel.arg_names
        return {name: tensor for name, tensor in self.tensors.items() if name in names} | self.launch.numbers

    def run(self, device: torch.device) -> None:
        """Launch on the device of the tensors."""
        self.launch.run([self.tensors[name] for name in self.launch.tensor_names], device)
