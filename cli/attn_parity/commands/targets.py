"""`attn-parity targets`: what can be fuzzed."""

import dataclasses
from importlib.metadata import entry_points
from typing import TYPE_CHECKING

import click
from attn_fuzz import extras
from attn_parity.console import notes, plain_table, results
from attn_parity.device import say_what_runs_kernels, use_device
from attn_parity.options import device_option

if TYPE_CHECKING:
    from rich.table import Table


@click.command("targets")
@click.argument("name", required=False)
@device_option
def command(name: str | None, device: str) -> None:
    """List what can be fuzzed here, or describe one target: what it is, why it cannot run, its modes, what it supports.

    Without the extra `fuzz`, it prints only the names of our targets.
    """
    try:
        from attn_fuzz.targets import registry  # noqa: F401
    except ModuleNotFoundError as error:
        if error.name not in extras.MODULES["fuzz"]:
            raise
        for entry in sorted({entry.name for entry in entry_points(group="attn_parity.targets")}):
            results.print(entry)
        notes.print(f"to see what each supports: {extras.install('fuzz')}")
        return
    device = use_device(device)
    say_what_runs_kernels(device)
    if name is not None:
        _describe(name, device)
        return
    results.print(_ours(device))
    results.print(_modes())
    _print_packages(device)


def _ours(device: str) -> "Table":
    """Targets that are entry points: ours, and those of packages that are installed."""
    from attn_fuzz.targets import registry

    table = plain_table("target", "what")
    for name in registry.ours():
        table.add_row(name, _line(name, device))
    return table


def _line(name: str, device: str) -> str:
    """The description of a target, or the reason why it cannot run on a device type here."""
    from attn_fuzz.targets import registry

    try:
        target = registry.load(name)
    except registry.TargetError as error:
        return str(error)
    reason = target.unavailable(device)
    return f"{target.description}; not here: {reason}" if reason else target.description


def _modes() -> "Table":
    from attn_fuzz.targets.modes import COMPILED, MODES
    from attn_fuzz.targets.of_architecture import ARCHITECTURES

    table = plain_table("\nmode, as in triton@far", "\nwhat")
    for mode, says in (MODES | dict.fromkeys(ARCHITECTURES, COMPILED)).items():
        table.add_row(f"@{mode}", says)
    return table


def _print_packages(device: str) -> None:
    """Print targets of other packages. Only the names are known of a package that is not here; no module is imported."""
    from attn_fuzz import foreign
    from attn_fuzz.targets import registry

    for name, package in registry.packages().items():
        missing, targets = package.missing(), sorted(package.attributes)
        results.print(f"\n{name}: {f'not here: {missing}' if missing else foreign.sources(package.name)}")
        if missing:
            results.print(", ".join(targets))
            continue
        table = plain_table("target", "what")
        for target in targets:
            table.add_row(target, _line(target, device))
        results.print(table)


def _describe(name: str, device: str) -> None:
    """Print all that is declared of a target."""
    from attn_fuzz.targets import modes, registry

    target = registry.load(name)
    table = plain_table("target", target.name)
    table.add_row("what", target.description)
    table.add_row(f"on {device}", target.unavailable(device) or "it runs")
    for finding in target.findings_on(device):
        table.add_row("finding", finding.name)
    if "@" not in name:
        in_a_run = registry.with_modes(name, device)
        for mode, words in modes.descriptions(target, registry.entry(name).value).items():
            table.add_row(f"@{mode}", words + "; a share of each run" * (f"{name}@{mode}" in in_a_run))
    for each in target.properties:
        table.add_row("property", f"{each.name}: {each.says} Compared {each.compared}; asked of {each.applies}.")
    support = target.support(device)
    for field in dataclasses.fields(support):
        value = getattr(support, field.name)
        if field.name not in ("engine", "latent", "exclude") and value not in ((), None):
            table.add_row(field.name, ", ".join(map(str, value)) if isinstance(value, tuple) else str(value))
    engine = support.engine
    for name in engine.restricted:
        cited = f"   {engine.cited[name]}" if name in engine.cited else ""
        table.add_row("engine", f"{name}={getattr(engine, name)!r}{cited}")
    results.print(table)
