"""Mutants that survive because their target never runs what they patch: another target may find them."""

import ast
from pathlib import Path

from attn_fuzz.patches.mutant import Patch
from attn_fuzz.patches.source import module_and_path, text_of
from attn_fuzz.run.shard import FuzzPlan
from attn_lab.mutate import line_coverage
from attn_lab.zoo.known_bugs import KnownBug

CASES = 150
"""Cases that a target runs, to learn which statements it runs."""


def is_unreached(mutant: KnownBug, seed: int, folder: Path) -> bool:
    """True if none of CASES cases of a mutant's target, on a CPU, runs a statement of the functions that it patches.

    Of the contract nothing can be said: the process that records has imported it.
    """
    if mutant.is_early:
        return False
    plan = FuzzPlan(target=mutant.target, device="cpu", examples=CASES, seed=seed, folder=folder)
    packages = {patch.place.split(".")[0] for patch in mutant.patches}
    ran = {module: lines for package in packages for module, lines in line_coverage.record(plan, package).cases.items()}
    return not any(_lines(patch) & ran.get(module_and_path(patch.place)[0], {}).keys() for patch in mutant.patches)


def _lines(patch: Patch) -> set[int]:
    """The lines of the class, function or module that a patch is in."""
    module, path = module_and_path(patch.place)
    text = text_of(module)
    node: ast.AST = ast.parse(text)
    for name in filter(None, path.split(".")):
        node = next(each for each in ast.walk(node) if getattr(each, "name", None) == name)
    body = node.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) else []
    return set(range(body[0].lineno, (body[-1].end_lineno or 0) + 1)) if body else set(range(1, text.count("\n") + 2))
