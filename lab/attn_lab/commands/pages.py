"""`python -m attn_lab pages`: whether the laboratory's pages are what the code, or the results beside them, make of them."""

import shlex
import subprocess
import sys
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor, as_completed

import click
from attn_parity.console import results
from attn_parity.cpus import usable_cpus

# those that take longest come first
CHECKS = (
    "python -m attn_lab binaries page --check",
    "python -m attn_lab zoo page --check",
    "python -m attn_lab mutate page --check",
    "python -m attn_lab matrix page --check --only backends",
    "python -m attn_lab judge page --check",
    "python -m attn_lab findings page --check",
    "python -m attn_lab releases page --check",
)


@click.command("pages")
@click.option("--beside", multiple=True, metavar="COMMAND", help="Another command, which runs beside the checks; repeatable.")
def command(beside: tuple[str, ...]) -> int:
    """Check that the laboratory's pages of docs/generated are what the code, or the results beside them, make of them.

    Checks run side by side, one for each usable CPU. Each prints a line when it ends, and all that it has printed if it
    fails. Exit 1 if one fails. `tox run -e docs` checks the pages of benchmarks, too, and `tox run -e nightly` those of
    coverage and model types, which take longer.
    """
    return check_all((*beside, *CHECKS), usable_cpus())


def check_all(checks: Iterable[str], cpus: int) -> int:
    """Run the checks, at most `cpus` at once, and return the exit code."""
    failed = 0
    with ThreadPoolExecutor(cpus) as pool:
        for ended in as_completed([pool.submit(_run, check) for check in checks]):
            check, code, printed, seconds = ended.result()
            results.print(f"{check}: {'passed' if code == 0 else f'exit {code}'}, {seconds:.0f} s")
            if code:
                failed += 1
                results.print(printed)
    return 1 if failed else 0


def _run(check: str) -> tuple[str, int, str, float]:
    """A check, its exit code, what it printed, and the seconds that it took."""
    program, *arguments = shlex.split(check)
    command = [sys.executable if program == "python" else program, *arguments]
    started = time.monotonic()
    ended = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    return check, ended.returncode, ended.stdout, time.monotonic() - started
