"""`attn-parity replay`: run a case file again."""

import tempfile
from pathlib import Path

import click
from attn_fuzz import report
from attn_fuzz.cases import case_file
from attn_fuzz.cases.case import CaseError
from attn_fuzz.errors import NOT_RUN
from attn_fuzz.findings.finding import explanation
from attn_fuzz.run.executor import Executor
from attn_fuzz.targets import registry
from attn_parity.console import results
from attn_parity.options import (
    case_seconds_option,
    check_exact,
    check_fence,
    device_name,
    device_option,
    exact_option,
    fence_option,
    sanitize_option,
    sanitizes,
    say_what_runs_kernels,
    target_of,
    use_device,
)


@click.command("replay")
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--target",
    "target_name",
    help="Run this target instead of the case's; needed if the case names a target as module:attribute.",
)
@case_seconds_option
@device_option
@sanitize_option
@exact_option
@fence_option
def command(
    files: tuple[Path, ...],
    target_name: str | None,
    case_seconds: float,
    device: str,
    sanitize: bool | None,
    exactly: bool,
    fenced: bool,
) -> int:
    """Run case files again, each on the target that it names; exit 1 if one fails."""
    device = use_device(device)
    check_exact(exactly, device)
    cases = []
    for path in files:
        case = case_file.load(path)
        name = target_of(case, path, target_name)
        target = registry.usable(name, device)
        if reason := target.not_drawn(case, device):
            raise CaseError(f"{path}: target {target.name} cannot run this case on {device}: {reason}")
        cases.append((path, case, name, target, sanitizes(sanitize, target, device)))
    targets = [target for _, _, _, target, _ in cases]
    check_fence(fenced, targets, device)
    say_what_runs_kernels(device, targets)
    code = 0
    with tempfile.TemporaryDirectory() as scratch:
        for path, case, name, target, checked in cases:
            ahead = Path(scratch, "in-flight.json")
            with Executor(name, device, case_seconds, ahead, sanitize=checked, exactly=exactly, fenced=fenced) as executor:
                verdict = executor.run(case)
            ran = f"target {target.name} on {device_name(device)}"
            error = f", largest error {verdict.ratio:.2f} of its bound" if verdict.ratio else ""
            finding = explanation(target.findings_on(device), case, verdict)
            known = f", as the known finding {finding.name} says" if finding else ""
            results.print(f"{path}: {verdict.kind}, {ran}{error}{known}", soft_wrap=True)
            if verdict.failed:
                code = 1
                results.print(report.summary(case, verdict))
            elif verdict.kind == "limit":
                code = code or NOT_RUN
                results.print(report.summary(case, verdict))
    return code
