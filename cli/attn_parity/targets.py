"""`attn-parity targets`: what can be fuzzed."""

from importlib.metadata import entry_points

import click
from attn_fuzz import extras
from attn_parity.console import notes, results
from attn_parity.options import device_option, plain_table, say_what_runs_kernels, use_device


@click.command("targets")
@device_option
def command(device: str) -> None:
    """List what can be fuzzed here: every target with what it supports, or why it cannot run.

    Without the extra `fuzz`, the names alone.
    """
    try:
        from attn_fuzz.targets import registry
    except ModuleNotFoundError as error:
        if error.name not in extras.MODULES["fuzz"]:
            raise
        for name in sorted({entry.name for entry in entry_points(group="attn_parity.targets")}):
            results.print(name)
        notes.print(f"to see what each supports: {extras.install('fuzz')}", soft_wrap=True)
        return
    device = use_device(device)
    say_what_runs_kernels(device)
    table = plain_table("target", "what", f"on {device}")
    for name in registry.names():
        try:
            target = registry.load(name)
        except registry.UnknownTargetError as error:
            table.add_row(name, "", str(error))
            continue
        support = target.support(device)
        table.add_row(name, target.description, target.unavailable(device) or ", ".join((*support.attn_types, *support.dtypes)))
    results.print(table)
