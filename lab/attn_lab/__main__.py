"""`python -m attn_lab`: the commands of maintainers. Exit codes are those of `attn-parity`."""

import click
from attn_parity import HELP, Commands, main

GROUPS = {
    "Mutants": {
        "zoo": "Put real bugs back, one at a time, and see whether the fuzzer finds each.",
        "mutate": "Make mutants by operators, and count those that fuzzer and tests find.",
        "miscompile": "Change one instruction of compiled kernels, and count the changes that are found.",
    },
    "Launches and instructions": {
        "binaries": "Compile the launches that ship, hold them to budgets, and run AMD's on the emulator.",
        "hashes": "Hash the assembly of every launch that ships, to compare two commits.",
        "instructions": "Say which instructions of other packages' kernels the emulator does not know.",
    },
    "Pages of docs/generated": {
        "model-types": "Write the table of transformers' model types that `attn-parity select` answers.",
        "matrix": "Write coverage.md and backends.md: what is supported, and what the fuzzer draws.",
        "findings": "Run the scripts of findings, and write the table of findings.",
        "judge": "Measure how close correct outputs come to the judge's bound.",
        "releases": "Say which fixes of others the fuzzer shows, on releases of their packages.",
        "pages": "Check that all pages there are what the code, or the results beside them, make of them.",
    },
    "Files": {"schemas": "Write the JSON schemas of what --json of users' commands writes."},
}


@click.group(cls=Commands, groups=GROUPS, module="attn_lab.commands.{}", context_settings=HELP)
def lab() -> None:
    """Commands for maintainers of attn-parity, run in the root of a checkout."""


if __name__ == "__main__":
    main(commands=lab, name="python -m attn_lab")
