"""`attn-parity prove`: prove the theorems about the kernels' source, for all lengths."""

import time
from pathlib import Path
from typing import Any

import click
from attn_fuzz import extras, inputs, outputs
from attn_parity.console import notes, results
from attn_parity.options import (
    PAGES,
    MaintainersOption,
    check_writable,
    json_option,
    page_option,
    plain_table,
    write_json,
)

PAGE = PAGES / "proofs.md"
SCHEMA, MUTANTS_SCHEMA = "attn-parity.prove/1", "attn-parity.prove-mutants/1"


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
    "--mutants",
    "confirms",
    is_flag=True,
    help="Put each theorem's mutant in instead: exit 0 if the case of each counterexample fails. With --json, all theorems are "
    "stated about each mutant, and the file says which of them are false.",
)
@click.option(
    "--cases", "folder", type=click.Path(file_okay=False, path_type=Path), default=Path("counterexamples"), show_default=True,
    help="The folder for cases of counterexamples, as THEOREM.json, which `attn-parity replay` runs.",
)  # fmt: skip
@click.option("--write", "writes", is_flag=True, cls=MaintainersOption, help="Write the page, if all theorems are proved.")
@click.option("--check", "checks", is_flag=True, cls=MaintainersOption, help="Exit 1 if the page is not what the proofs make.")
@page_option(PAGE)
@json_option
def command(
    names: tuple[str, ...], lists: bool, shows: bool, confirms: bool, folder: Path, writes: bool, checks: bool, page: Path,
    json_file: Path | None,
) -> int:  # fmt: skip
    """Prove theorems about the source of the kernels, for all lengths: all of them, or those of these names or families.

    Exit 0 if all are proved. Exit 1 if one is not: a counterexample is written as a case, and a timeout is no proof.
    Exit 2 if the source has a construct that the extractor does not understand, or there is no such theorem.
    """
    extras.require("proofs")
    from attn_proofs.theorem import chosen
    from attn_proofs.theorems import THEOREMS

    if (writes or checks) and names:
        raise click.UsageError("--write and --check are for all theorems: give no names")
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
    if confirms:
        return _confirm(theorems, folder, json_file)
    return _prove(theorems, folder, page, writes=writes, checks=checks, json_file=json_file)


def _prove(theorems: list[Any], folder: Path, page: Path, *, writes: bool, checks: bool, json_file: Path | None) -> int:
    from attn_proofs import page as pages
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
    if wrong:
        return 1
    text = pages.text(proved) if writes or checks else ""
    if writes:
        outputs.write(page, text)
        notes.print(f"{page} written")
    if checks and (not page.is_file() or inputs.read_text(page) != text):
        results.print(f"{page} is not current: run `attn-parity prove --write`", soft_wrap=True)
        return 1
    return 0


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
    from attn_proofs.page import lines_of
    from attn_proofs.sources import Sources

    sources = Sources()
    for theorem in theorems:
        results.print(f"{theorem.name}: {theorem.says}", soft_wrap=True)
        for claim in theorem.claims(sources):
            results.print(f"\n  {claim.name}", soft_wrap=True)
            for line in lines_of(claim):
                results.print(f"    {line}", soft_wrap=True)
            for assumption in claim.assumptions:
                results.print(f"    assume {z3.simplify(assumption).sexpr()}", soft_wrap=True, markup=False)
            results.print(f"    prove {z3.simplify(claim.goal).sexpr()}", soft_wrap=True, markup=False)
    return 0


def _confirm(theorems: list[Any], folder: Path, json_file: Path | None) -> int:
    """Put mutants in, and run the cases of their counterexamples. Into a JSON file, say which theorems each of them refutes."""
    from attn_fuzz import report
    from attn_proofs.mutants import confirm
    from attn_proofs.theorems import THEOREMS
    from attn_proofs.zoo import broken

    wrong, rows = 0, []
    try:
        for theorem in theorems:
            if json_file:
                false = broken(theorem.known_bug, THEOREMS)
                row = {
                    "mutant": theorem.name,
                    "refutes": false.theorems,
                    "undecided": false.undecided,
                    "refused": false.refused,
                }
                rows.append(row)
                results.print(f"{theorem.name}: its mutant refutes {', '.join(false.theorems) or 'nothing'}", soft_wrap=True)
            found = confirm(theorem)
            wrong += not found.confirmed
            if found.case is None or found.verdict is None:
                results.print(f"{theorem.name}: the mutant is not refuted by a case", soft_wrap=True)
                continue
            report.save(found.case, folder, theorem.name)
            results.print(f"{theorem.name}: refuted ({found.claim}); its case: {found.verdict.kind}", soft_wrap=True)
    finally:  # a mutant takes half a minute, and an error or Ctrl-C at the last one cost all others
        if json_file:
            write_json(json_file, {"schema": MUTANTS_SCHEMA, "mutants": rows})
    results.print(f"{len(theorems) - wrong} of {len(theorems)} mutants refuted and confirmed")
    return 1 if wrong else 0
