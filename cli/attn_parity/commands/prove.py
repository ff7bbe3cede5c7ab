"""`attn-parity prove`: prove the theorems about the kernels' source, for all lengths."""

from pathlib import Path
from typing import Any

import click
from attn_fuzz import extras
from attn_parity.console import plain_table, results
from attn_parity.files import check_writable
from attn_parity.options import json_option
from attn_parity.proving import folder_option, prove_all


@click.command("prove")
@click.argument("names", nargs=-1, metavar="[THEOREM]...")
@click.option("--list", "lists", is_flag=True, help="List the theorems and what they say; prove nothing.")
@click.option(
    "--show",
    "shows",
    is_flag=True,
    help="Print the extracted formulas and the source lines that they come from; prove nothing.",
)
@folder_option
@json_option
def command(names: tuple[str, ...], lists: bool, shows: bool, folder: Path, json_file: Path | None) -> int:
    """Prove theorems about the source of the kernels, for all lengths: all of them, or those of these names or families.

    Exit 0 if all are proved. Exit 1 if one is not: a counterexample is written as a case, and a timeout is no proof.
    Exit 2 if the source has a construct that the extractor does not understand, or there is no such theorem.
    """
    extras.require("proofs")
    from attn_proofs.theorem import chosen
    from attn_proofs.theorems import THEOREMS

    theorems = chosen(THEOREMS, names)
    check_writable(json_file)
    if lists:
        table = plain_table("theorem", "says")
        for theorem in theorems:
            table.add_row(theorem.name, theorem.says)
        results.print(table)
        return 0
    if shows:
        return _show(theorems)
    return int(prove_all(theorems, folder, json_file) is None)


def _show(theorems: list[Any]) -> int:
    """Print the claims as the solver gets them."""
    import z3
    from attn_proofs.sources import Sources, path_of

    sources = Sources()
    for theorem in theorems:
        results.print(f"{theorem.name}: {theorem.says}")
        for claim in theorem.claims(sources):
            results.print(f"\n  {claim.name}")
            for module, numbers in sorted(claim.lines.items()):
                lines = ", ".join(map(str, sorted(numbers)))
                results.print(f"    {path_of(module)}: lines {lines}")
            for assumption in claim.assumptions:
                results.print(f"    assume {z3.simplify(assumption).sexpr()}")
            results.print(f"    prove {z3.simplify(claim.goal).sexpr()}")
    return 0
