"""`python -m benchmarks speed` measures, `python -m benchmarks page` writes performance.md from what was measured,
`python -m benchmarks tune` searches for launch parameters. `python -m benchmarks peers` puts launches of vLLM's and AITER's
kernels beside ours, without a GPU. `python -m benchmarks indexer` times the stages of a decode that chooses its keys,
`python -m benchmarks ranks` attention over several GPUs, and `python -m benchmarks host` what a step costs the host."""

import click

from benchmarks.host.command import host
from benchmarks.indexer import indexer
from benchmarks.peers.command import peers
from benchmarks.ranks.command import ranks
from benchmarks.speed.command import page, speed
from benchmarks.tuning.command import tune


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def cli() -> None:
    """Speed, side by side."""


for command in (speed, page, tune, host, indexer, peers, ranks):
    cli.add_command(command)

if __name__ == "__main__":
    cli()
