"""Options of several commands of the laboratory."""

import click
from attn_parity.options import Seed

first_seed_option = click.option("--seed", type=Seed, default=0, show_default=True, help="The first seed of cases.")
seeds_option = click.option(
    "--seeds", type=click.IntRange(1, 100), default=1, show_default=True, help="Number of seeds, counted up from the first."
)
