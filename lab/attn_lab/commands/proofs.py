"""`python -m attn_lab proofs`: the page of theorems, and their mutants."""

from pathlib import Path
from typing import Any

import click
from attn_fuzz import extras
from attn_lab.options import check_option
from attn_lab.pages import PAGES, write_or_check
from attn_parity.console import results
from attn_parity.files import check_writable
from attn_parity.options import json_option
from attn_parity.proving import prove_all

PAGE = PAGES / "proofs.md"


@click.command("proofs")
@click.argument("names", nargs=-1, metavar="[THEOREM]...")
@click.option("--mutants", "confirms", is_flag=True, help="Put each theorem's mutant in, and write no page.")
@click.option(
    "--cases",
    "folder",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("counterexamples"),
    show_default=True,
    help="The folder for cases of counterexamples.",
)
@check_option
@json_option
def command(names: tuple[str, ...], confirms: bool, folder: Path, check: bool, json_file: Path | None) -> int:
    """Prove all theorems, and write docs/generated/proofs.md.

    With --mutants, of all theorems or of these, exit 0 if the case of each counterexample fails.
    """
    extras.require("proofs")
    from attn_lab.proofs import page
    from attn_proofs.theorem import chosen
    from attn_proofs.theorems import THEOREMS

    if confirms and json_file:
        raise click.UsageError("--json is about what is proved, and --mutants proves nothing")
    if confirms:
        return _confirm(chosen(THEOREMS, names), folder)
    check_writable(json_file)
    if names:
        raise click.UsageError("the page is of all theorems: give no names without --mutants")
    proved = prove_all(THEOREMS, folder, json_file)
    return 1 if proved is None else write_or_check({PAGE: page.text(proved)}, "python -m attn_lab proofs", checks=check)


def _confirm(theorems: list[Any], folder: Path) -> int:
    """Put mutants in, and run the cases of their counterexamples."""
    from attn_fuzz import report
    from attn_lab.proofs.mutants import confirm

    wrong = 0
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
