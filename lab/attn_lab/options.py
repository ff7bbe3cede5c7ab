"""Options of several commands of the laboratory."""

from collections.abc import Callable
from pathlib import Path

import click
from attn_parity.options import Seed

first_seed_option = click.option("--seed", type=Seed, default=0, show_default=True, help="The first seed of cases.")
seeds_option = click.option(
    "--seeds", type=click.IntRange(1, 100), default=1, show_default=True, help="Number of seeds, counted up from the first."
)
check_option = click.option("--check", is_flag=True, help="Write nothing; exit 1 if the page is out of date.")


def page_option(default: Path) -> Callable[[Callable[..., int]], Callable[..., int]]:
    """The option `--page` of a command whose results are beside its page."""
    kind = click.Path(dir_okay=False, path_type=Path)
    return click.option("--page", type=kind, default=default, show_default=True, help="The page.")
