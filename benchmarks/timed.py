"""Parts that commands which time kernels share: checks of options, the head of the results, and the end of a run.

Triton reads whether to interpret kernels when a kernel is defined. So this module imports nothing that defines one before
`interpret`, and neither does a command.
"""

import contextlib
import importlib.metadata
import math
import os
import platform
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import click
from rich.console import Console

if TYPE_CHECKING:
    import torch

    from benchmarks.speed.results import Run


class Named(Protocol):
    @property
    def name(self) -> str: ...


T = TypeVar("T", bound=Named)


def check_options(budget: float, path: Path | None) -> None:
    """
    Raises:
        click.UsageError: the budget is no number, or is infinite, or the file cannot be written.
    """
    from attn_parity.files import check_writable

    if not math.isfinite(budget):
        raise click.BadParameter(f"got {budget}, expected a finite number of seconds", param_hint="--budget")
    check_writable(path)


def use_device(*, tiny: bool) -> "torch.device":
    """The GPU that is here. Without one, kernels are interpreted on the CPU.

    Raises:
        click.UsageError: there is no GPU, and --tiny is not given.
    """
    import torch

    if torch.cuda.is_available():
        return torch.device("cuda")
    if not tiny:
        raise click.UsageError("torch sees no GPU here; --tiny interprets tiny cases, whose times have no value")
    interpret()
    return torch.device("cpu")


def interpret() -> None:
    """Have this process interpret kernels, exactly."""
    os.environ["TRITON_INTERPRET"] = "1"
    from attn_fuzz.interpreted.interpreter import install

    install()


def cases_named(cases: Sequence[T], only: Sequence[str]) -> list[T]:
    """The cases whose name holds one of these texts; all if no text is given.

    Raises:
        click.BadParameter: there is none.
    """
    chosen = [case for case in cases if not only or any(text in case.name for text in only)]
    if not chosen:
        raise click.BadParameter(f"no case has {' or '.join(map(repr, only))} in its name", param_hint="--only")
    return chosen


def command_line() -> str:
    """The command of this run, to be typed again."""
    return shlex.join(["python", "-m", "benchmarks", *sys.argv[1:]])


def in_words(versions: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in versions.items())


def begun(
    device: "torch.device",
    peers: Mapping[str, str],
    commit: str | None,
    console: Console,
    *,
    tiny: bool,
) -> "Run":
    """The head of a run's results, which is printed, too.

    Args:
        peers: versions of the other participants, by name.
        commit: None: as git says.
    """
    from benchmarks.speed import machine, results

    head = head_of_run(device, peers, commit, console, tiny=tiny)
    run = results.Run(**head, rates=machine.rates(device, tiny=tiny))
    console.print(
        f"read {run.rates.read / 1e12:.3g} TB/s, copy {run.rates.copy / 1e12:.3g} TB/s, matmul "
        f"{run.rates.matmul / 1e12:.4g} TFLOP/s, an empty launch {1e3 * run.rates.launch:.3g} us"
    )
    return run


def head_of_run(
    device: "torch.device", peers: Mapping[str, str], commit: str | None, console: Console, *, tiny: bool
) -> dict[str, Any]:
    """The fields with which the results of all commands begin. The machine and the versions are printed; see `begun`."""
    import torch

    from benchmarks.speed import results

    head = {
        "of_value": device.type == "cuda" and not tiny,
        "machine": torch.cuda.get_device_name() if device.type == "cuda" else "CPU",
        "versions": {
            "python": platform.python_version(),
            "torch": str(torch.__version__),
            "triton": importlib.metadata.version("triton"),
            **peers,
        },
        "command": command_line(),
        "commit": commit or results.commit(),
    }
    console.print(f"{head['machine']}, {in_words(head['versions'])}")
    return head


@contextlib.contextmanager
def saving(run: "Run", path: Path | None, console: Console) -> "Iterator[Callable[[Run], None]]":
    """Yield what saves a run; see `interruptible`."""
    from benchmarks.speed import results

    def save(run: "Run") -> None:
        if path is not None:
            results.write(run, path)

    def so_far() -> str:
        return f"{len(run.cases)} cases measured, {len(run.unmeasured)} not"

    with interruptible(lambda: save(run), so_far, console):
        yield save


@contextlib.contextmanager
def interruptible(save: Callable[[], None], so_far: Callable[[], str], console: Console) -> Iterator[None]:
    """Save what was found when an interrupt or the loss of the GPU ends a run.

    Raises:
        SystemExit: it was interrupted. `so_far` is printed.
        click.ClickException: the GPU no longer runs anything.
    """
    from attn_parity.signals import sigterm_interrupts

    from benchmarks.speed.run import DeviceError

    try:
        with sigterm_interrupts():
            yield
    except KeyboardInterrupt:
        save()
        console.print(f"interrupted: {so_far()}")
        sys.exit(130)
    except DeviceError as error:
        save()
        raise click.ClickException(str(error)) from error
