"""Launches on GPUs that are not here: what Triton and its driver would be given is compared with the call.

A GPU's driver is pretended, and so is a kernel that Triton compiles. As Triton does, it compiles for one GPU, for the arguments
that are None, and for tensors that lie at multiples of 16 bytes. What it has compiled fits no other call.
"""

import contextlib
import dataclasses
import random
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple
from unittest import mock

import torch

if TYPE_CHECKING:
    from attn_optimized.kernel_call import KernelCall

ALIGNMENT = 16
"""Triton compiles anew for a tensor whose address is no multiple of this."""
GPUS, LAUNCHES = 2, 5


class _Launched(NamedTuple):
    """One launch as the driver sees it. `pointers` has tensors by address, and `options` are None where nothing is compiled."""

    gpu: int
    grid: tuple[int, ...]
    pointers: list[Any]
    options: dict[str, Any] | None


class _Driver:
    """The GPUs of a machine, of which one is the current one."""

    def __init__(self) -> None:
        self.current = 0
        self.launched: list[_Launched] = []

    def current_device(self) -> int:
        return self.current

    @contextlib.contextmanager
    def device(self, gpu: torch.device | int) -> Iterator[None]:
        before = self.current
        self.current = gpu if isinstance(gpu, int) else int(gpu.index)
        try:
            yield
        finally:
            self.current = before


class _Compiled:
    """A kernel as it is compiled for the arguments of a launch.

    Args:
        form: returns what a kernel is compiled for, of the addresses of its arguments.
    """

    def __init__(self, driver: _Driver, form: Callable[[Sequence[Any]], object], pointers: Sequence[Any]) -> None:
        self._driver, self._form = driver, form
        self._made_for = form(pointers)

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        def launch(*pointers: Any) -> None:
            form = self._form(pointers)
            assert form == self._made_for, f"a kernel compiled for {self._made_for} is launched on {form}"
            self._driver.launched.append(_Launched(self._driver.current, (*grid, 1, 1)[:3], [*pointers], None))

        return launch


def _kernel(of: Any, driver: _Driver) -> Any:
    """A kernel that Triton would compile, with the parameters of an interpreted one."""
    from triton import JITFunction

    unspecialized = of.kwargs["do_not_specialize_on_alignment"]
    aligned = [place for place, name in enumerate(of.arg_names) if name.endswith("_ptr") and name not in unspecialized]

    def form(pointers: Sequence[Any]) -> object:
        """What is compiled for: the GPU, places of arguments that are None, and places of tensors that are aligned."""
        missing = [place for place, pointer in enumerate(pointers) if pointer is None]
        return driver.current, missing, [place for place in aligned if not (pointers[place] or 0) % ALIGNMENT]

    class Kernel(JITFunction):
        def __init__(self) -> None:
            self.arg_names = of.arg_names
            self.do_not_specialize_on_alignment = unspecialized

        def __getitem__(self, grid: tuple[int, ...]) -> Any:
            def launch(*arguments: Any, **options: Any) -> _Compiled:
                pointers = _addresses(arguments)
                driver.launched.append(_Launched(driver.current, (*grid, 1, 1)[:3], pointers, options))
                return _Compiled(driver, form, pointers)

            return launch

    return Kernel()


def _addresses(arguments: Sequence[Any]) -> list[Any]:
    return [argument.data_ptr() if isinstance(argument, torch.Tensor) else argument for argument in arguments]


def check(call: "KernelCall", choose: random.Random) -> None:
    """Launch a call several times on GPUs that are pretended, on tensors that are aligned and on others.

    Raises:
        AssertionError: a launch was not made, or was made twice, on another GPU, of another grid or with other arguments; or a
            kernel was launched on tensors for which it was not compiled; or the arguments that a kernel is compiled with are
            not those of its launch.
    """
    names, numbers, constants = call.launch.kernel.arg_names, call.launch.numbers, call.launch.constants
    if 0 in call.launch.grid:
        return
    driver = _Driver()
    call = call._replace(launch=dataclasses.replace(call.launch, kernel=_kernel(call.launch.kernel, driver)))
    with (
        mock.patch.object(torch.cuda, "current_device", driver.current_device),
        mock.patch.object(torch.cuda, "device", driver.device),
    ):
        for _ in range(LAUNCHES):
            tensors = {name: _moved(tensor, choose) for name, tensor in call.tensors.items()}
            moved = call._replace(tensors=tensors)
            expected = {**tensors, **numbers}
            compiled_with = moved.arguments
            assert compiled_with.keys() == expected.keys() == {*names} - {*constants}, f"a kernel has {[*compiled_with]}"
            assert all(compiled_with[name] is value for name, value in expected.items()), f"a kernel has {compiled_with}"
            gpu, driver.current = choose.randrange(GPUS), choose.randrange(GPUS)
            driver.launched.clear()
            moved.run(torch.device("cuda", gpu))
            assert len(driver.launched) == 1, f"{len(driver.launched)} launches of one call"
            (launched,) = driver.launched
            assert launched.gpu == gpu, f"a call on GPU {gpu} is launched on GPU {launched.gpu}"
            assert launched.grid == (*call.launch.grid, 1, 1)[:3], (
                f"a grid of {call.launch.grid} is launched as {launched.grid}"
            )
            values = _addresses([(expected | constants)[name] for name in names])
            assert launched.pointers == values, f"{names} are launched as {launched.pointers}, expected {values}"
            assert launched.options in (None, call.launch.options), f"options {launched.options}"


def _moved(tensor: torch.Tensor | None, choose: random.Random) -> torch.Tensor | None:
    """A tensor as it is, or memory of its dtype: mostly at a multiple of 16 bytes; now and then at none, or without an element.

    A tensor without an element has the address 0.
    """
    if tensor is None or not tensor.numel() or choose.random() < 0.25:
        return tensor
    return tensor.new_empty(choose.choice((0, *[ALIGNMENT + 1] * 9)))[int(choose.random() < 0.1) :]
