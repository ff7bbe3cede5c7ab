"""`python -m attn_lab releases`: which fixes of others the fuzzer shows, and which releases have which findings."""

from pathlib import Path

import click
from attn_lab.options import check_option
from attn_lab.pages import write_or_check
from attn_lab.releases import alarms, runner
from attn_lab.releases import page as pages
from attn_parity.console import results


@click.command("releases")
@click.argument("names", nargs=-1, metavar="[NAME]...")
@click.option(
    "--sources",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="A folder with a folder PACKAGE-RELEASE for each release. Without it, nothing runs.",
)
@click.option(
    "--examples",
    type=click.IntRange(0, runner.MOST_EXAMPLES),
    default=100,
    show_default=True,
    help="Examples of each target on each release.",
)
@click.option(
    "--example", "extra", type=click.IntRange(0, runner.MOST_EXAMPLES - 1), multiple=True, help="Further examples, from 0 on."
)
@click.option("--seconds", type=click.FloatRange(1), default=600.0, show_default=True, help="For a target on a release.")
@click.option(
    "--seed", type=click.IntRange(0), default=alarms.SEEDS[0], show_default=True, help="Of the cases that --alarms counts."
)
@click.option(
    "--alarms",
    "alarms_file",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Run nothing of that, but all interpreted targets on all releases, go on in this file, and count their failures.",
)
@check_option
def command(
    names: tuple[str, ...],
    sources: Path | None,
    examples: int,
    extra: tuple[int, ...],
    seconds: float,
    seed: int,
    alarms_file: Path | None,
    check: bool,
) -> int:
    """Run targets around each fix of lab/attn_lab/releases/fixes.toml, then the findings' scripts, and write the page.

    NAME is a target or a finding: then that one alone runs. What has run stays, and is not run again.
    """
    kept = runner.results()
    if alarms_file:
        for line in alarms.run_all(sources, examples, seconds, names, alarms_file, seed) if sources else ():
            results.print(line)
        for line in alarms.run_after(sources, names, alarms_file) if sources else ():
            results.print(line)
        alarms.keep(seed, alarms_file)
    elif sources:
        runner.add_releases(kept, sources)
        options = {"examples": examples, "seconds": seconds, "only": names, "extra": extra}
        for line in runner.run_fixes(sources, kept, runner.RESULTS, **options):
            results.print(line)
        for line in runner.run_findings(sources, kept, runner.RESULTS, names):
            results.print(line)
    return write_or_check({pages.PAGE: pages.page(kept)}, "python -m attn_lab releases", checks=check)
