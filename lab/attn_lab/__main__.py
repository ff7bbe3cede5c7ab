"""`python -m attn_lab`: the commands of maintainers. Exit codes are those of `attn-parity`."""

import click
from attn_parity import HELP, Commands, main

GROUPS = {
    "Mutants": {"zoo": "Put real bugs back, one at a time, and see whether the fuzzer finds each."},
    "Launches and instructions": {
        "binaries": "Compile the launches that ship, hold them to budgets, and run AMD's on the emulator.",
        "hashes": "Hash the assembly of every launch that ships, to compare two commits.",
        "instructions": "Say which instructions of other packages' kernels the emulator does not know.",
    },
    "Pages of docs/generated": {
        "matrix": "Write backends.md: what each backend can do.",
        "findings": "Run the scripts of findings, and write the table of findings.",
    },
}


@click.group(cls=Commands, groups=GROUPS, module="attn_lab.commands.{}", context_settings=HELP)
def lab() -> None:
    """Commands for maintainers of attn-parity, run in the root of a checkout."""


if __name__ == "__main__":
    main(commands=lab, name="python -m attn_lab")
