"""`python -m benchmarks`: times beside those of other projects, and launch parameters.

Exit codes are those of `attn-parity`.
"""

import click
from attn_parity import HELP, Commands, main

GROUPS = {
    "Times and launch parameters": {
        "speed": "Time attention beside PyTorch's, vLLM's and AITER's.",
        "tune": "Search for better launch parameters, on a GPU or by binaries.",
    },
}


@click.group(cls=Commands, groups=GROUPS, module="benchmarks.{}.command", context_settings=HELP)
def cli() -> None:
    """Time the attention kernels beside those of other projects, and search for their launch parameters."""


if __name__ == "__main__":
    main(commands=cli, name="python -m benchmarks")
