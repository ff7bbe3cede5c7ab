"""`attn-parity replay`: run a case file again."""

import tempfile
from pathlib import Path

import click
from attn_fuzz import case as case_file
from attn_fuzz import report, targets
from attn_fuzz.case import CaseError
from attn_fuzz.cli.options import device_option, limit_option, results, use_device
from attn_fuzz.executor import Executor


@click.command("replay")
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--target", "target_name", help="Instead of the one that the case names.")
@limit_option
@device_option
def command(files: tuple[Path, ...], target_name: str | None, limit: float, device: str) -> int:
    """Run cases again."""
    device = use_device(device)
    cases = []
    for path in files:
        case = case_file.load(path)
        target = targets.usable(target_name or case.target, device)
        if reason := target.support(device).limit(case):
            raise CaseError(f"{path}: target {target.name} cannot run this case on {device}: {reason}")
        cases.append((path, case, target_name or case.target))
    failed = False
    with tempfile.TemporaryDirectory() as scratch:
        for path, case, name in cases:
            with Executor(name, device, limit, Path(scratch, "in-flight.json")) as executor:
                verdict = executor.run(case)
            results.print(f"{path}: {verdict.kind}, largest error {verdict.ratio:.2f} of its bound", soft_wrap=True)
            if verdict.failed:
                failed = True
                results.print(report.summary(case, verdict))
    return int(failed)
