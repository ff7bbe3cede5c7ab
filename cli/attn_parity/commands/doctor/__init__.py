"""`attn-parity doctor`: report what this machine has."""

import importlib.util
import platform
from pathlib import Path

import click
from attn_fuzz import extras
from attn_parity.console import plain_table, results
from attn_parity.cpus import usable_cpus
from attn_parity.device import device_name, say_what_runs_kernels, use_device
from attn_parity.options import Positive, Seed
from attn_parity.versions import version

EXAMPLES = 500
REPORT = Path("attn-parity-doctor.json")


@click.command("doctor")
@click.option(
    "--full",
    is_flag=True,
    help="Compile every kernel, fuzz every target, on an AMD GPU compare launches with the emulator, time a few calls: minutes "
    "to an hour.",
)
@click.option("--examples", type=Positive, help=f"With --full: number of cases for each target; default: {EXAMPLES}.")
@click.option("--seed", type=Seed, help="With --full: the same seed draws the same cases.")
@click.option(
    "--json",
    "json_file",
    type=click.Path(dir_okay=False, path_type=Path),
    help=f"With --full: the file for the result; default: {REPORT}.",
)
@click.option(
    "--read",
    "report_file",
    type=click.Path(path_type=Path),
    help="Say by a file of --full with how many stages each launch is to ship, and print a patch of the table.",
)
def command(full: bool, examples: int | None, seed: int | None, json_file: Path | None, report_file: Path | None) -> int:
    """Say what this machine has, and what to install for the rest. With --full, run everything that can run here."""
    import torch

    if report_file is not None:
        if full or (examples, seed, json_file) != (None, None, None):
            raise click.UsageError("--read goes with no other option")
        from attn_parity.commands.doctor.read import stages_to_ship  # of the extra

        return stages_to_ship(report_file)
    if full:
        from attn_parity.commands.doctor.full import report  # of the extra

        return report(json_file or REPORT, examples or EXAMPLES, seed)
    if (examples, seed, json_file) != (None, None, None):
        raise click.UsageError("--examples, --seed and --json are for --full")

    device = use_device("auto")
    say_what_runs_kernels(device)
    table = plain_table("part", "here")
    table.add_row("python", platform.python_version())
    table.add_row("torch", torch.__version__)
    table.add_row("device", device_name(device))
    table.add_row("triton", version("triton") or f"missing: {extras.install('cpu')}")
    table.add_row("kernels", "compiled" if device == "cuda" else "interpreted on the CPU")
    table.add_row("hypothesis", version("hypothesis") or f"missing: {extras.install('fuzz')}")
    for part, here in _aiter().items():
        table.add_row(part, here)
    table.add_row("CPUs", str(usable_cpus()))
    results.print(table)
    return 0


def _aiter() -> dict[str, str]:
    """The version of the installed AITER, and the features that its signatures declare. AITER is read and not imported."""
    if importlib.util.find_spec("triton") is None:
        return {"AITER": "not asked: its adapter is part of attn_optimized, which needs triton"}
    from attn_optimized.aiter_adapter import features_of, find_aiter

    aiter = find_aiter()
    if aiter.missing is not None:
        return {"AITER": aiter.missing}
    return {"AITER": f"{aiter} in {aiter.location}"} | {
        f"AITER, {name.replace('_', ' ')}": why_not or "yes" for name, why_not in features_of(aiter).items()
    }
