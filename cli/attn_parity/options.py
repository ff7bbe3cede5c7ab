"""Options that commands share, checks before the work starts, progress bars and signals."""

import contextlib
import json
import math
import re
import signal
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from attn_fuzz import outputs
from attn_fuzz.errors import InputError
from attn_parity.console import notes
from attn_parity.cpus import usable_cpus
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

if TYPE_CHECKING:
    from attn_fuzz.cases.case import Case
    from attn_fuzz.targets.target import Target


class _Duration(click.FloatRange):
    """A positive number of seconds or minutes, at most the number of seconds in a day. NaN is refused."""

    def __init__(self) -> None:
        super().__init__(min=0, max=86_400, min_open=True)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        number = super().convert(value, param, ctx)
        return number if number == number else self.fail(f"{value} is not a number.", param, ctx)


class Shard(click.ParamType):
    """K/N, the k-th of n shards, from 1."""

    name = "K/N"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, int]:
        if isinstance(value, tuple):
            return value
        found = re.fullmatch(r"(\d{1,6})/(\d{1,6})", value)
        shard = (int(found[1]), int(found[2])) if found else (0, 0)
        if not 1 <= shard[0] <= shard[1]:
            self.fail(f"got {value!r}, expected K/N with K from 1 to N, such as 3/8", param, ctx)
        return shard


Positive = click.IntRange(min=1, max=10**9)
Seed = click.IntRange(min=0, max=(1 << 63) - 1)
Duration = _Duration()

device_option = click.option(
    "--device",
    type=click.Choice(["auto", "cpu", "cuda"]),
    default="auto",
    help="auto: a GPU if there is one. AMD GPUs are cuda, too.",
)
_Workers = click.IntRange(min=1, max=256)
workers_option = click.option(
    "--workers",
    type=_Workers,
    help="Number of processes; default: one for each CPU that this process may use, and on a GPU for each 2 GiB of memory.",
)
cpu_workers_option = click.option(
    "--workers",
    type=_Workers,
    default=usable_cpus,
    help="Number of processes; default: one for each CPU that this process may use.",
)


def seconds_option(name: str, default: float, words: str) -> Callable[[Callable], Callable]:
    return click.option(name, type=Duration, default=default, show_default=True, help=words)


case_seconds_option = seconds_option("--case-seconds", 60.0, "Seconds that a case may take, compilation included.")
sanitize_option = click.option(
    "--sanitize/--no-sanitize",
    default=None,
    help="Check every address that interpreted kernels access; default: on for this project's kernels on a CPU.",
)
exact_option = click.option(
    "--exact",
    "exactly",
    is_flag=True,
    help="Follow interpreted kernels and torch in exact arithmetic, and compare outputs with the formula without a tolerance.",
)
fence_option = click.option(
    "--fence",
    "fenced",
    is_flag=True,
    help="Make the calls of each case twice more, with each tensor against an unmapped page: after its end, and before its "
    "beginning. A read there is a failure.",
)
json_option = click.option(
    "--json", "json_file", type=click.Path(dir_okay=False, path_type=Path), help="Write the result into this file as JSON."
)
corpus_option = click.option(
    "--corpus",
    metavar="FOLDER|FILE|none",
    help="A file or folder of cases to run first; default: those that come with the fuzzer; none: no cases.",
)


ray_option = click.option(
    "--ray", "address", metavar="auto|HOST:PORT", help="Run on this Ray cluster; auto: the one that this machine is a node of."
)
needs_option = click.option(
    "--needs", multiple=True, metavar="NAME", help="With --ray: a resource that a node must have, such as gfx942."
)
working_dir_option = click.option(
    "--working-dir",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="With --ray: nodes get a copy of this folder, for the module of a target.",
)


def use_device(choice: str) -> str:
    """ "cpu" or "cuda"."""
    import torch

    available = torch.cuda.is_available()
    if choice == "cuda" and not available:
        raise click.ClickException("--device cuda: torch sees no GPU here")
    return "cuda" if choice != "cpu" and available else "cpu"


def say_what_runs_kernels(device: str, targets: "Iterable[Target]" = ()) -> None:
    """On a CPU, print how the kernels of targets run without a GPU. Without targets they are interpreted."""
    if device != "cpu":
        return
    compiles = {target.compiles for target in targets}
    if compiles != {True}:
        notes.print("no GPU in use: Triton interprets the kernels on the CPU")
    if True in compiles:
        notes.print("no GPU in use: Triton compiles the kernels for a GPU that is emulated on the CPU")


def sanitizes(choice: bool | None, target: "Target", device: str) -> bool:
    """True if a target's memory accesses are checked. By default they are checked wherever that is possible."""
    if choice and device != "cpu":
        raise click.ClickException("--sanitize: accesses are checked under Triton's interpreter, so only with --device cpu")
    if choice and not target.sanitizes:
        raise click.ClickException(f"--sanitize: target {target.name} does not declare Triton kernels (Target.sanitizes)")
    return choice is not False and target.can_be_sanitized(device)


def check_exact(exactly: bool, device: str) -> None:
    """Fail before the work if exact mode is asked for where no kernel is interpreted."""
    if exactly and device != "cpu":
        raise click.ClickException("--exact: kernels are followed under Triton's interpreter, so only with --device cpu")


def check_fence(fenced: bool, targets: "Iterable[Target]", device: str) -> None:
    """Fail before the work if unmapped pages are asked for where there are none, or where no tensor would lie beside one."""
    if not fenced:
        return
    if emulated := [target.name for target in targets if target.compiles]:
        raise click.ClickException(f"--fence: the kernels of {emulated[0]} are emulated, where every address is checked")
    from attn_fuzz.run import pages

    try:
        pages.pool(device)
    except pages.NoPagesError as error:
        raise click.ClickException(f"--fence: {error}") from None


def target_of(case: "Case", path: Path, given: str | None) -> str:
    """The target to run a case file on. A module is imported only if the command line names it, never because a file does."""
    if given is None and ":" in case.target:
        raise click.ClickException(
            f"{path}: its target is a module, which would be imported: if you trust it, --target {case.target}"
        )
    return given or case.target


def device_name(device: str) -> str:
    import torch

    return torch.cuda.get_device_name() if device == "cuda" else "CPU"


WORKER_BYTES = 2 << 30
"""GPU memory reserved for each worker: for its CUDA context and one case."""


def default_workers(device: str) -> int:
    import torch

    if device == "cpu":
        return usable_cpus()
    return max(1, min(usable_cpus(), torch.cuda.get_device_properties(device).total_memory // WORKER_BYTES))


def plain_table(*columns: str, right: tuple[str, ...] = ()) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, justify="right" if column in right else "left")
    return table


@contextlib.contextmanager
def progress_bar(total: int) -> Iterator[Callable[[int, int], None]]:
    """A progress bar. Call it with the number of finished examples and the number of cases that shrinking has tried."""
    columns = (SpinnerColumn(), BarColumn(), TextColumn("{task.completed}/{task.total}"), TimeElapsedColumn())
    hidden = not notes.is_terminal
    with Progress(*columns, TextColumn("{task.description}"), console=notes, transient=True, disable=hidden) as progress:
        task = progress.add_task("starting", total=total)

        def show(completed: int, tried: int) -> None:
            progress.update(task, completed=completed, description=f"{tried} cases tried to shrink" if tried else "")

        yield show


@contextlib.contextmanager
def sigterm_interrupts() -> Iterator[None]:
    """SIGTERM ends a run as Ctrl-C does.

    Afterwards both signals are handled as before, unless the run was interrupted. Then its process ignores further signals
    until it ends, because they would change its exit code.
    """
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        for number, handler in handlers.items():
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, handler)


@contextlib.contextmanager
def interrupts_end_the_process() -> Iterator[None]:
    """For imports: a signal ends the process at once, instead of raising KeyboardInterrupt in a module that is half imported.

    Torch goes on without numpy if numpy's import fails, and fails when it imports numpy again.
    """
    raising = [one for one in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(one) is signal.default_int_handler]
    for number in raising:
        signal.signal(number, signal.SIG_DFL)
    try:
        yield
    finally:
        for number in raising:
            signal.signal(number, signal.default_int_handler)


def ignore_signals() -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def check_writable(path: Path | None, option: str = "--json", made: Path | None = None) -> None:
    """Fail before the work if a file cannot be written. The file may lie in `made`, a folder that the command makes."""
    try:
        if path is not None and (made is None or made.exists() or path.resolve().parent != made.resolve()):
            outputs.check(path, option)
    except InputError as error:
        raise click.UsageError(str(error)) from None


def say_half(lines: outputs.Lines) -> None:
    """Print a note if a killed run had left half a line in a file."""
    if lines.half:
        notes.print(f"{lines.path}: half a line of a killed run is dropped: what it was about runs again", soft_wrap=True)


def write_json(path: Path, result: Mapping[str, object]) -> None:
    """Write a result as JSON. NaN and infinities become null: JSON has no such numbers."""
    try:
        outputs.write(path, json.dumps(_finite(result), indent=1, ensure_ascii=False) + "\n")
    except OSError as error:
        raise click.ClickException(f"--json: {path}: {error.strerror}") from error


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
