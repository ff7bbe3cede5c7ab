"""Proves theorems, prints what came of each, and writes the cases of counterexamples."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, TypedDict

import click
from attn_parity.console import results
from attn_parity.files import write_json

folder_option = click.option(
    "--cases",
    "folder",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("counterexamples"),
    show_default=True,
    help="The folder for cases of counterexamples, as THEOREM.json, which `attn-parity replay` runs.",
)


class Proof(TypedDict):
    """The result of a theorem: its number of claims, and the file of a counterexample's case, if there is one."""

    theorem: str
    outcome: Literal["proved", "refuted", "undecided", "vacuous"]
    claims: int
    seconds: float
    case: str | None


class Prove(TypedDict):
    """The results of all theorems of a run."""

    schema: Literal["attn-parity.prove/1"]
    theorems: list[Proof]


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
        results.print(f"{theorem.name}: {outcome}, {len(found)} claims, {seconds:.1f} s")
        for result in failed:
            results.print(f"  {result.claim.name}: {result.outcome}")
        case = _written_case(theorem, failed, folder)
        proved.append((theorem, found))
        rows.append(Proof(theorem=theorem.name, outcome=outcome, claims=len(found), seconds=seconds, case=case))
    if json_file:
        write_json(json_file, Prove(schema="attn-parity.prove/1", theorems=rows))
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
        results.print(f"  {path} written: run `attn-parity replay {path}`")
        return str(path)
    return None
