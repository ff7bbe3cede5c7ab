"""`python -m benchmarks speed` measures, `python -m benchmarks page` writes performance.md from what was measured,
`python -m benchmarks tune` searches for launch parameters. Beside vLLM's and AITER's kernels, `python -m benchmarks binaries`
is what the compilers make of ours, `python -m benchmarks counts` what ours execute on the emulator, and `python -m benchmarks
bounds` what AMD's published rates let them reach. `python -m benchmarks latent` measures latent attention (MLA), `python -m
benchmarks ranks` attention over several GPUs, and `python -m benchmarks host` what a step costs the host."""

import click

from benchmarks.binaries.command import binaries
from benchmarks.bounds.command import bounds
from benchmarks.counts.command import counts
from benchmarks.emulation.command import emulation
from benchmarks.emulation.options import options
from benchmarks.emulation.runs import emulated
from benchmarks.host.command import host
from benchmarks.latent.command import latent
from benchmarks.ranks.command import ranks
from benchmarks.speed.command import page, speed
from benchmarks.tuning.command import tune


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def cli() -> None:
    """Speed, side by side."""


for command in (speed, page, tune, latent, host, binaries, bounds, counts, emulated, emulation, options, ranks):
    cli.add_command(command)

if __name__ == "__main__":
    cli()
