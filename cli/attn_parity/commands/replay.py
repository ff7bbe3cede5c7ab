"""`attn-parity replay`: run a case file again."""

import tempfile
from pathlib import Path
from typing import Any

import click
from attn_fuzz import report
from attn_fuzz.cases import case_file
from attn_fuzz.errors import EXIT_LIMIT
from attn_fuzz.run.known import explained
from attn_fuzz.run.processes.executor import Executor
from attn_parity.case_files import case_target_option, usable_target
from attn_parity.console import results
from attn_parity.device import (
    check_exact,
    check_fence,
    check_malformed,
    device_name,
    sanitizes,
    say_what_runs_kernels,
    use_device,
)
from attn_parity.options import (
    case_seconds_option,
    device_option,
    exact_option,
    fence_option,
    malformed_option,
    sanitize_option,
)


@click.command("replay")
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path))
@case_target_option
@case_seconds_option
@device_option
@sanitize_option
@exact_option
@fence_option
@malformed_option
def command(
    files: tuple[Path, ...],
    target_name: str | None,
    case_seconds: float,
    device: str,
    sanitize: bool | None,
    exactly: bool,
    fenced: bool,
    malformed: bool,
) -> int:
    """Run case files again, each on the target that it names; exit 1 if one fails."""
    device = use_device(device)
    check_exact(exactly, device)
    cases = []
    for path in files:
        case = case_file.load(path)
        name, target = usable_target(case, path, target_name, device)
        cases.append((path, case, name, target, sanitizes(sanitize, target, device)))
    targets = [target for _, _, _, target, _ in cases]
    check_fence(fenced, targets, device)
    check_malformed(malformed, targets, fence=fenced, exact=exactly, sanitize=sanitize)
    say_what_runs_kernels(device, targets)
    code = 0
    with tempfile.TemporaryDirectory() as scratch:
        for path, case, name, target, checked in cases:
            ahead = Path(scratch, "in-flight.json")
            more: dict[str, Any] = {
                "sanitize": checked and not malformed,
                "exactly": exactly,
                "fenced": fenced,
                "malformed": malformed,
            }
            with Executor(name, device, case_seconds, ahead, **more) as executor:
                verdict, known = explained(executor, target.findings_on(device), case, executor.run(case))
            ran = f"target {target.name} on {device_name(device)}"
            error = f", largest error {verdict.ratio:.2f} of its bound" if verdict.ratio else ""
            said = f", as the known finding {known.finding.name} says" if known else ""
            said += ", and agrees once repaired" if known and known.agrees_repaired else ""
            results.print(f"{path}: {verdict.kind}, {ran}{error}{said}")
            if verdict.failed:
                code = 1
                results.print(report.summary(case, verdict))
            elif verdict.kind == "limit":
                code = code or EXIT_LIMIT
                results.print(report.summary(case, verdict))
    return code
