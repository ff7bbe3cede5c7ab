"""Case files that a command line names, each with the target that it is run on."""

from pathlib import Path

import click
from attn_fuzz.cases.case import Case, CaseError
from attn_fuzz.targets import registry
from attn_fuzz.targets.target import Target

case_target_option = click.option(
    "--target",
    "target_name",
    help="Run this target instead of the case's; needed if the case names a target as module:attribute.",
)


def target_of(case: Case, path: Path, given: str | None) -> str:
    """The target to run a case file on. A module is imported only if the command line names it, never because a file does."""
    if given is None and ":" in case.target:
        raise click.UsageError(
            f"{path}: its target is a module, which would be imported: if you trust it, --target {case.target}"
        )
    return given or case.target


def usable_target(case: Case, path: Path, given: str | None, device: str) -> tuple[str, Target]:
    """The name of the target to run a case file on, and the target.

    Raises:
        CaseError: the target cannot run the case.
    """
    name = target_of(case, path, given)
    target = registry.usable(name, device)
    if reason := target.not_drawn(case, device):
        raise CaseError(f"{path}: target {target.name} cannot run this case on {device}: {reason}")
    return name, target
