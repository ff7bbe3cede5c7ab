"""`python -m benchmarks`: times beside those of other projects, launch parameters, hashes of binaries, the judge's bound."""

import importlib

import click
from attn_parity import HELP, Commands

GROUPS = {
    "Times on a GPU": {
        "speed": "Time attention beside PyTorch's, vLLM's and AITER's.",
        "page": "Write performance.md from the results of speed and host.",
        "host": "Time what a step costs the host.",
        "indexer": "Time the stages of a decode that selects its keys.",
        "ranks": "Check and time attention over several GPUs.",
        "tune": "Search for better launch parameters.",
    },
    "Without a GPU": {
        "peers": "Put compiled launches of vLLM and AITER beside ours: binaries, counts, bounds.",
        "hashes": "Hash the assembly of every launch that ships, to compare two commits.",
        "judge": "Measure how close correct outputs come to the judge's bound.",
    },
}
PLACES = {
    **{name: f"benchmarks.{name}.command" for group in GROUPS.values() for name in group},
    "page": "benchmarks.speed.command",
    "tune": "benchmarks.tuning.command",
}
"""The module of each command, which has it under the command's name."""


class Benchmarks(Commands):
    """Commands, each imported when it runs: Triton decides on its first import whether kernels are interpreted."""

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        return getattr(importlib.import_module(PLACES[cmd_name]), cmd_name) if cmd_name in PLACES else None


@click.group(cls=Benchmarks, groups=GROUPS, module="", context_settings=HELP)
def cli() -> None:
    """Time the attention kernels beside those of other projects, and measure what this project's tools find."""


if __name__ == "__main__":
    cli()
