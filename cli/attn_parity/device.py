"""The device of a run, and the checks that it can do what options ask of it."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

import click
from attn_parity.console import notes
from attn_parity.cpus import usable_cpus

if TYPE_CHECKING:
    from attn_fuzz.targets.target import Target


def use_device(choice: str) -> str:
    """ "cpu" or "cuda"."""
    import torch

    available = torch.cuda.is_available()
    if choice == "cuda" and not available:
        raise click.UsageError("--device cuda: torch sees no GPU here")
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
        raise click.UsageError("--sanitize: accesses are checked under Triton's interpreter, so only with --device cpu")
    if choice and not target.sanitizes:
        raise click.UsageError(f"--sanitize: target {target.name} does not declare Triton kernels (Target.sanitizes)")
    return choice is not False and target.can_be_sanitized(device)


def check_exact(exactly: bool, device: str) -> None:
    """Fail before the work if exact mode is asked for where no kernel is interpreted."""
    if exactly and device != "cpu":
        raise click.UsageError("--exact: kernels are followed under Triton's interpreter, so only with --device cpu")


def check_fence(fenced: bool, targets: "Iterable[Target]", device: str) -> None:
    """Fail before the work if unmapped pages are asked for where there are none, or where no tensor would lie beside one."""
    if not fenced:
        return
    if emulated := [target.name for target in targets if target.compiles]:
        raise click.UsageError(f"--fence: the kernels of {emulated[0]} are emulated, where every address is checked")
    from attn_fuzz.run.case import unmapped

    try:
        unmapped.pool(device)
    except unmapped.NoPagesError as error:
        raise click.UsageError(f"--fence: {error}") from None


def check_malformed(malformed: bool, targets: "Iterable[Target]", **others: object) -> None:
    """Fail before the work if calls are to be corrupted of a target that promises no checks, or beside another option."""
    if not malformed:
        return
    for target in targets:
        if not target.checks_arguments:
            raise click.UsageError(f"--malformed: target {target.name} promises no checks (Target.checks_arguments)")
    if beside := [name for name, given in others.items() if given]:
        raise click.UsageError(f"--malformed: got --{beside[0]} too, which looks at legal calls")


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
