"""`attn-parity targets` and `attn-parity doctor`: what can be fuzzed, and what this machine has."""

import importlib.metadata
import importlib.util
import os
import platform

import click
from attn_fuzz import targets
from attn_fuzz.cli.options import device_name, device_option, plain_table, results, use_device
from attn_fuzz.targets import UnknownTargetError


@click.command("targets")
@device_option
def list_targets(device: str) -> None:
    """What can be fuzzed here."""
    device = use_device(device)
    table = plain_table("target", "what", f"on {device}")
    for name in targets.names():
        try:
            target = targets.load(name)
        except UnknownTargetError as error:
            table.add_row(name, "", str(error))
            continue
        support = target.support(device)
        table.add_row(name, target.description, target.unavailable(device) or ", ".join((*support.attn_types, *support.dtypes)))
    results.print(table)


@click.command()
def doctor() -> None:
    """What this machine has, and what to install for the rest."""
    import torch

    device = use_device("auto")
    table = plain_table("part", "here")
    table.add_row("python", platform.python_version())
    table.add_row("torch", torch.__version__)
    table.add_row("device", device_name(device))
    table.add_row("triton", _version("triton") or "missing: pip install 'attn-parity[cpu]'")
    table.add_row("kernels", "compiled" if device == "cuda" else "interpreted on the CPU")
    table.add_row("hypothesis", _version("hypothesis") or "missing: pip install 'attn-parity[fuzz]'")
    amd = _version("amd-aiter")
    other = "the package named aiter here is not AMD's; " if importlib.util.find_spec("aiter") and not amd else ""
    table.add_row("AITER", amd or f"missing: {other}pip install 'attn-parity[aiter]'")
    table.add_row("cores", str(os.cpu_count()))
    results.print(table)


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None
