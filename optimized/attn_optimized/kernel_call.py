"""Launches as data: what a kernel is compiled for and run with, made from shapes, strides and host values alone."""

from typing import Any, NamedTuple

import torch

Argument = torch.Tensor | int | float | None


class KernelCall(NamedTuple):
    """A launch that has not happened yet. Its tensors may be on meta, where it can be compiled but not launched."""

    kernel: Any
    """What triton.jit made of a function, compiled or interpreted."""
    grid: tuple[int, ...]
    constants: dict[str, Any]
    """The kernel's tl.constexpr, by name."""
    options: dict[str, Any]
    """The compiler's: num_warps and its like."""
    arguments: dict[str, Argument]
    """The kernel's others, by name."""

    @classmethod
    def of(
        cls, kernel: Any, grid: tuple[int, ...], constants: dict[str, Any], options: dict[str, Any], /, **arguments: Argument
    ) -> "KernelCall":
        return cls(kernel, grid, constants, options, arguments)

    def launch(self, device: torch.device) -> None:
        """Run it where its tensors are; a grid without programs runs nothing."""
        if 0 in self.grid:
            return
        # in the kernel's order: by name Triton takes half as long again to bind so many
        values = self.arguments | self.constants
        with torch.cuda.device(device.index if device.type == "cuda" else -1):
            self.kernel[self.grid](*[values[name] for name in self.kernel.arg_names], **self.options)
