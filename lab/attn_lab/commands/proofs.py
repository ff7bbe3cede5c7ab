"""`python -m attn_lab proofs`: the page of theorems, and their mutants."""

from pathlib import Path
from typing import Any

import click
from attn_fuzz import extras
from attn_lab import written
from attn_lab.options import check_option
from attn_parity.console import results
from attn_parity.options import PAGES, check_writable, json_option, write_json

PAGE = PAGES / "proofs.md"
SCHEMA = "attn-parity.prove-mutants/1"


@click.command("proofs")
@click.argument("names", nargs=-1, metavar="[THEOREM]...")
@click.option("--mutants", "confirms", is_flag=True, help="Put each theorem's mutant in, and write no page.")
@click.option("--cases", "folder", type=click.Path(file_okay=False, path_type=Path), default=Path("counterexamples"))
@check_option
@json_option
def command(names: tuple[str, ...], confirms: bool, folder: Path, check: bool, json_file: Path | None) -> int:
    """Prove all theorems, and write docs/generated/proofs.md.

    With --mutants, of all theorems or of these, exit 0 if the case of each counterexample fails. With --json, all theorems
    are stated about each mutant, and the file says which of them are false.
    """
    extras.require("proofs")
    from attn_lab.proofs import page
    from attn_parity.prove import prove_all
    from attn_proofs.theorem import chosen
    from attn_proofs.theorems import THEOREMS

    check_writable(json_file)
    if confirms:
        return _confirm(chosen(THEOREMS, names), folder, json_file)
    if names:
        raise click.UsageError("the page is of all theorems: give no names without --mutants")
    proved = prove_all(THEOREMS, folder, json_file)
    return 1 if proved is None else written.settle({PAGE: page.text(proved)}, "python -m attn_lab proofs", checks=check)


def _confirm(theorems: list[Any], folder: Path, json_file: Path | None) -> int:
    """Put mutants in, and run the cases of their counterexamples. Into a JSON file, say which theorems each of them refutes."""
    from attn_fuzz import report
    from attn_lab.proofs.mutants import broken, confirm
    from attn_proofs.theorems import THEOREMS

    wrong, rows = 0, []
    try:
        for theorem in theorems:
            if json_file:
                false = broken(theorem.mutant, THEOREMS)
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
            write_json(json_file, {"schema": SCHEMA, "mutants": rows})
    results.print(f"{len(theorems) - wrong} of {len(theorems)} mutants refuted and confirmed")
    return 1 if wrong else 0
