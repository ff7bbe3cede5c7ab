"""`attn-parity prove`: prove the theorems about the kernels' source, for all lengths."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
from attn_fuzz import extras
from attn_parity.console import plain_table, results
from attn_parity.files import check_writable, write_json
from attn_parity.options import json_option

SCHEMA = "attn-parity.prove/1"


@click.command("prove")
@click.argument("names", nargs=-1, metavar="[THEOREM]...")
@click.option("--list", "lists", is_flag=True, help="List the theorems and what they say; prove nothing.")
@click.option(
    "--show",
    "shows",
    is_flag=True,
    help="Print the extracted formulas and the source lines that they come from; prove nothing.",
)
@click.option(
    "--cases", "folder", type=click.Path(file_okay=False, path_type=Path), default=Path("counterexamples"), show_default=True,
    help="The folder for cases of counterexamples, as THEOREM.json, which `attn-parity replay` runs.",
)  # fmt: skip
@json_option
def command(
    names: tuple[str, ...], lists: bool, shows: bool, folder: Path, json_file: Path | None
) -> int:  # fmt: skip
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


def prove_all(theorems: Sequence[Any], folder: Path, json_file: Path | None) -> list[tuple[Any, list[Any]]] | None:
    """Prove theorems, print the result of each, and write cases of counterexamples. None if one is not proved."""
    from attn_proofs.sources import Sources
    from attn_proofs.theorem import prove

    sources, proved, rows = Sources(), [], []
    for theorem in theorems:
        started = time.monotonic()
        found = list(prove(theorem, sources))
        failed = [result for result in found if result.outcome != "proved"]
        outcome = failed[0].outcome if failed else "proved"
        seconds = time.monotonic() - started
        results.print(f"{theorem.name}: {outcome}, {len(found)} claims, {seconds:.1f} s", soft_wrap=True)
        for result in failed:
            results.print(f"  {result.claim.name}: {result.outcome}", soft_wrap=True)
        case = _written_case(theorem, failed, folder)
        proved.append((theorem, found))
        rows.append({"theorem": theorem.name, "outcome": outcome, "claims": len(found), "seconds": seconds, "case": case})
    if json_file:
        write_json(json_file, {"schema": SCHEMA, "theorems": rows})
    wrong = [row["theorem"] for row in rows if row["outcome"] != "proved"]
    spent = sum(row["seconds"] for row in rows)
    results.print(f"{len(rows) - len(wrong)} of {len(rows)} theorems proved in {spent:.0f} s")
    return None if wrong else proved


def _written_case(theorem: Any, failed: list[Any], folder: Path) -> str | None:
    """The file of a counterexample's case, if one of the failed claims has a counterexample that becomes one."""
    from attn_fuzz import report
    from attn_proofs.theorem import small_counterexample

    for result in failed:
        model = small_counterexample(result.claim) if result.outcome == "refuted" else None
        if model is None:
            continue
        path = report.save(theorem.case(model), folder, theorem.name)
        results.print(f"  {path} written: run `attn-parity replay {path}`", soft_wrap=True)
        return str(path)
    return None


def _show(theorems: list[Any]) -> int:
    """Print the claims as the solver gets them."""
    import z3
    from attn_proofs.sources import Sources, path_of

    sources = Sources()
    for theorem in theorems:
        results.print(f"{theorem.name}: {theorem.says}", soft_wrap=True)
        for claim in theorem.claims(sources):
            results.print(f"\n  {claim.name}", soft_wrap=True)
            for module, numbers in sorted(claim.lines.items()):
                lines = ", ".join(map(str, sorted(numbers)))
                results.print(f"    {path_of(module)}: lines {lines}", soft_wrap=True)
            for assumption in claim.assumptions:
                results.print(f"    assume {z3.simplify(assumption).sexpr()}", soft_wrap=True, markup=False)
            results.print(f"    prove {z3.simplify(claim.goal).sexpr()}", soft_wrap=True, markup=False)
    return 0
