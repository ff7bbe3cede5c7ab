"""The device of a run: the GPU that is here, or a CPU that interprets kernels.

Triton reads whether to interpret kernels when a kernel is defined. So this module imports nothing that defines one before
`interpret`, and neither does a command.
"""

import contextlib
import gc
import os
from collections.abc import Callable, Iterator

import click
import torch
from attn_fuzz.errors import ExecutorError
from attn_parity.console import results


class DeviceError(ExecutorError):
    """A kernel has left the GPU in a state in which nothing runs any more."""


def use_device(*, tiny: bool, tiny_on_cpu: bool = False, instead: str = "") -> torch.device:
    """The GPU that is here. With --tiny and no GPU, or with `tiny_on_cpu`, the CPU, which interprets kernels.

    Args:
        instead: another option that needs no GPU, for the message.

    Raises:
        click.UsageError: there is no GPU, and --tiny is not given.
    """
    found = torch.cuda.device_count()
    if tiny and (tiny_on_cpu or not found):
        interpret()
        return torch.device("cpu")
    if not found:
        others = f"{instead}--tiny interprets tiny cases, whose times have no value"
        raise click.UsageError(f"torch sees no GPU here; {others}")
    return torch.device("cuda")


def interpret() -> None:
    """Have this process interpret kernels, exactly."""
    os.environ["TRITON_INTERPRET"] = "1"
    from attn_fuzz.interpreted.interpreter import install

    install()


def why_gone() -> str | None:
    """The error of a GPU that runs nothing any more for this process."""
    if torch.cuda.is_available():
        try:
            torch.cuda.synchronize()
        except RuntimeError as error:
            return str(error).partition("\n")[0]
    return None


def check_device(cause: Exception) -> None:
    """
    Raises:
        DeviceError: an error has taken the GPU with it.
    """
    if why_gone() is not None:
        raise DeviceError(f"the GPU runs nothing any more after: {cause}") from cause


def free() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


@contextlib.contextmanager
def saved_at_the_end(save: Callable[[], None], so_far: Callable[[], str]) -> Iterator[None]:
    """Save what was found when an interrupt or the loss of the GPU ends a run, too. `so_far` says how much that is."""
    try:
        yield
    except (KeyboardInterrupt, DeviceError):
        save()
        results.print(f"interrupted: {so_far()}")
        raise
