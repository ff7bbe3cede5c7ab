"""`attn-parity targets`: what can be fuzzed."""

import click
from attn_fuzz.targets import registry
from attn_fuzz.targets.registry import UnknownTargetError
from attn_parity.options import device_option, plain_table, results, use_device


@click.command("targets")
@device_option
def list_targets(device: str) -> None:
    """What can be fuzzed here."""
    device = use_device(device)
    table = plain_table("target", "what", f"on {device}")
    for name in registry.names():
        try:
            target = registry.load(name)
        except UnknownTargetError as error:
            table.add_row(name, "", str(error))
            continue
        support = target.support(device)
        table.add_row(name, target.description, target.unavailable(device) or ", ".join((*support.attn_types, *support.dtypes)))
    results.print(table)
