"""`python -m attn_lab proofs`: the page of theorems, and their mutants."""

from pathlib import Path

import click
from attn_fuzz import extras
from attn_lab.options import check_option
from attn_lab.pages import PAGES, write_or_check
from attn_parity.console import results
from attn_parity.files import check_writable
from attn_parity.options import json_option
from attn_parity.proving import folder_option, prove_all

PAGE = PAGES / "proofs.md"


@click.group("proofs")
def command() -> None:
    """Prove all theorems, or put the mutant of each theorem in."""
    extras.require("proofs")


@command.command("page")
@folder_option
@check_option
@json_option
def _page(folder: Path, check: bool, json_file: Path | None) -> int:
    """Prove all theorems, and write docs/generated/proofs.md."""
    from attn_lab.proofs import page
    from attn_proofs.theorems import THEOREMS

    check_writable(json_file)
    proved = prove_all(THEOREMS, folder, json_file)
    return 1 if proved is None else write_or_check({PAGE: page.text(proved)}, "python -m attn_lab proofs page", checks=check)


@command.command("mutants")
@click.argument("names", nargs=-1, metavar="[THEOREM]...")
@folder_option
def _mutants(names: tuple[str, ...], folder: Path) -> int:
    """Put the mutants of all theorems, or of these, in, and run the cases of their counterexamples.

    Exit 0 if the case of each counterexample fails.
    """
    from attn_fuzz import report
    from attn_lab.proofs.mutants import confirm
    from attn_proofs.theorem import chosen
    from attn_proofs.theorems import THEOREMS

    theorems, wrong = chosen(THEOREMS, names), 0
    for theorem in theorems:
        found = confirm(theorem)
        wrong += not found.confirmed
        if found.case is None or found.verdict is None:
            results.print(f"{theorem.name}: the mutant is not refuted by a case")
            continue
        report.save(found.case, folder, theorem.name)
        results.print(f"{theorem.name}: refuted ({found.claim}); its case: {found.verdict.kind}")
    results.print(f"{len(theorems) - wrong} of {len(theorems)} mutants refuted and confirmed")
    return 1 if wrong else 0
