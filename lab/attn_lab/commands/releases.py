"""`python -m attn_lab releases`: which fixes of others the fuzzer shows, and which releases have which findings."""

from pathlib import Path

import click
from attn_lab.options import check_option
from attn_lab.pages import write_or_check
from attn_lab.releases import alarms, runner
from attn_lab.releases import page as releases_page
from attn_parity.console import results
from attn_parity.options import together

_names = click.argument("names", nargs=-1, metavar="[NAME]...")
_Folder = click.Path(exists=True, file_okay=False, path_type=Path)
_sources_option = click.option(
    "--sources", type=_Folder, required=True, help="A folder with a folder PACKAGE-RELEASE for each release."
)
_run_options = together(
    click.option(
        "--examples",
        type=click.IntRange(0, runner.MAX_EXAMPLES),
        default=100,
        show_default=True,
        help="Examples of each target on each release.",
    ),
    click.option("--seconds", type=click.FloatRange(1), default=600.0, show_default=True, help="For a target on a release."),
)


@click.group("releases")
def command() -> None:
    """Run targets and scripts of findings on releases of others' packages. What has run stays, and is not run again."""


@command.command("fixes")
@_names
@_sources_option
@_run_options
@click.option(
    "--example", "extra", type=click.IntRange(0, runner.MAX_EXAMPLES - 1), multiple=True, help="Further examples, from 0 on."
)
def _fixes(names: tuple[str, ...], sources: Path, examples: int, seconds: float, extra: tuple[int, ...]) -> None:
    """Run all targets, or these, around each fix of lab/attn_lab/releases/fixes.toml."""
    kept = runner.stored()
    runner.add_releases(kept, sources)
    for line in runner.run_fixes(sources, kept, runner.RESULTS, examples=examples, seconds=seconds, only=names, extra=extra):
        results.print(line)


@command.command("findings")
@_names
@_sources_option
def _findings(names: tuple[str, ...], sources: Path) -> None:
    """Run the scripts of all findings, or of these."""
    kept = runner.stored()
    runner.add_releases(kept, sources)
    for line in runner.run_findings(sources, kept, runner.RESULTS, names):
        results.print(line)


@command.command("alarms")
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@_names
@click.option("--sources", type=_Folder, help="As of `fixes`. Without it nothing runs, and what FILE holds is counted.")
@_run_options
@click.option("--seed", type=click.IntRange(0), default=alarms.SEEDS[0], show_default=True, help="The seed of the cases.")
def _alarms(file: Path, names: tuple[str, ...], sources: Path | None, examples: int, seconds: float, seed: int) -> None:
    """Run all interpreted targets, or these, on all releases, go on in FILE, and count their failures."""
    if sources:
        for line in alarms.run_all(sources, examples, seconds, names, file, seed):
            results.print(line)
        for line in alarms.run_after(sources, names, file):
            results.print(line)
    alarms.keep(file)


@command.command("page")
@check_option
def _page(check: bool) -> int:
    """Write docs/generated/releases.md of the files beside it."""
    texts = {releases_page.PAGE: releases_page.page(runner.stored())}
    return write_or_check(texts, "python -m attn_lab releases page", checks=check)
