"""`python -m benchmarks`: times beside those of other projects, and launch parameters.

Exit codes are those of `attn-parity`.
"""

import click
from attn_parity import HELP, Commands, main

GROUPS = {
    "Times and launch parameters": {
        "speed": "Time attention beside PyTorch's, vLLM's and AITER's.",
        "host": "Time what a step costs the host.",
        "indexer": "Time the stages of a decode that selects its keys.",
        "ranks": "Check and time attention over several GPUs.",
        "tune": "Search for better launch parameters, on a GPU or by binaries.",
    },
    "Without a GPU": {
        "page": "Write performance.md from the results of speed and host, and peers.md from those of peers.",
        "peers": "Put compiled launches of vLLM and AITER beside ours: binaries, counts, bounds.",
    },
}


@click.group(cls=Commands, groups=GROUPS, module="benchmarks.{}.command", context_settings=HELP)
def cli() -> None:
    """Time the attention kernels beside those of other projects, and search for their launch parameters."""


if __name__ == "__main__":
    main(commands=cli, name="python -m benchmarks")
