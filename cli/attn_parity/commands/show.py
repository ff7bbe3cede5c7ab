"""`attn-parity show`: pictures of a case, in the terminal or as a page."""

import tempfile
from pathlib import Path

import click
from attn_fuzz import outputs, report
from attn_fuzz.cases import case_file
from attn_fuzz.cases.case import CaseError
from attn_fuzz.errors import EXIT_LIMIT
from attn_fuzz.explain import captured_outputs
from attn_fuzz.report import page, pictures, terminal
from attn_fuzz.report.grid import Room
from attn_fuzz.run.processes.executor import Executor
from attn_parity.case_files import case_target_option, usable_target
from attn_parity.console import results
from attn_parity.device import say_what_runs_kernels, use_device
from attn_parity.files import check_writable
from attn_parity.options import case_seconds_option, device_option

TERMINAL_ROWS = 32
ROW_NAMES = 24


@click.command("show")
@click.argument("file", type=click.Path(path_type=Path))
@case_target_option
@click.option("--run/--no-run", "runs", default=True, show_default=True, help="Whether to run the target and draw its errors.")
@click.option(
    "--html", "html", type=click.Path(dir_okay=False, path_type=Path), help="Write the pictures as an HTML page, too."
)
@case_seconds_option
@device_option
def command(file: Path, target_name: str | None, runs: bool, html: Path | None, case_seconds: float, device: str) -> int:
    """Draw a case: masks, block table, allocation, and error against bound; exit 1 if it fails."""
    check_writable(html, "--html")
    case = case_file.load(file)
    if html is not None and html.exists() and html.samefile(file):
        raise click.UsageError(f"--html: {html} is the case itself")
    verdict = captured_outputs.verdict(case) if runs and target_name is None else None
    if verdict is not None:
        results.print("the output that the call gave, which this case keeps; --target NAME runs a kernel instead:")
    elif runs:
        device = use_device(device)
        try:
            name, target = usable_target(case, file, target_name, device)
        except CaseError as error:
            raise CaseError(f"{error}; --no-run draws it") from None
        say_what_runs_kernels(device, [target])
        with (
            tempfile.TemporaryDirectory() as scratch,
            Executor(name, device, case_seconds, Path(scratch, "case.json")) as executor,
        ):
            verdict = executor.run(case)
    results.print(report.summary(case, verdict))
    room = Room(TERMINAL_ROWS, max(8, results.width - ROW_NAMES))
    results.print(terminal.render(pictures.draw(case, verdict, room)))
    if html is not None:
        outputs.write(html, page.of_case(case, verdict, file))
        results.print(f"page: {html}")
    if verdict is not None and verdict.kind == "limit":
        return EXIT_LIMIT
    return int(verdict is not None and verdict.failed)
