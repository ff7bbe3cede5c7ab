"""The page of the backends: what each declares, as tables. The selector and the constructors ask the same declarations."""

import dataclasses
from collections.abc import Iterator

from attn_contract import RULES, Answer, AttentionType, Capabilities, No
from attn_contract.capabilities import Values
from attn_lab.pages import PAGES, table
from attn_optimized.aiter_adapter import RECORDED, Aiter, recorded
from attn_optimized.backends import BACKENDS
from attn_optimized.selector import PRIORITIES
from attn_parity.backend_runs import RUNS

PAGE = PAGES / "backends.md"
NEWEST = RECORDED[-1]
Cell = tuple[str, str]
"""A backend's answer, and why it serves no more; "" where there is nothing to explain."""


def backend_page() -> str:
    """docs/generated/backends.md, whole; the same on every machine."""
    newest = _tables(recorded(NEWEST))
    others = {f"AITER {version}": recorded(version) for version in RECORDED[:-1]}
    others["no AITER"] = Aiter(missing="AITER is not installed")
    lines = [
        "# What each backend can do",
        "",
        "`python -m attn_lab matrix page` writes this page from the declarations in `attn_optimized/backends`. The selector",
        "and the backends' constructors read the same declarations. `attn-parity select` applies the declarations to a layer",
        "or a model, and says why the other backends do not serve it.",
        "",
        "## Order",
        "",
        "The first backend that serves a layer is selected. The order is vLLM 0.33's, so that a name means the same there",
        "and here. It is not an order by speed, because no AMD GPU has run these backends yet. [findings.md](findings.md)",
        "lists findings in kernels that are not ours.",
        "",
        *table(("architecture", "backends"), ((f"`{pattern}`", ", ".join(names)) for pattern, names in PRIORITIES.items())),
        "",
        "## Which kernels were run",
        "",
        "By this project; `attn-parity select` says the same of the backends that it selects. Emulated kernels were run",
        "without a GPU ([emulator.md](../reference/emulator.md)), and their targets take an architecture, as in",
        "`--target aiter-pa-assembly@gfx942`.",
        "",
        *table(("backend", "kernels", "were", "target", "known findings"), _runs()),
        "",
        f"## With AITER {NEWEST}",
        "",
        "A number in brackets is that of a reason below the table.",
        "",
        *_with_footnotes(newest),
    ]
    for name, aiter in others.items():
        lines += ["", f"## With {name} instead", "", *_differences(newest, _tables(aiter))]
    return "\n".join(lines) + "\n"


def _runs() -> Iterator[tuple[str, ...]]:
    for backend, runs in RUNS.items():
        for run in runs:
            yield (backend, run.kernels, run.how, f"`{run.target}`", run.known)


def _tables(aiter: Aiter) -> dict[str, dict[str, Cell]]:
    """Each backend's answers by property. All backends have the same properties."""
    declared = {name: backend.capabilities(aiter) for name, backend in BACKENDS.items()}
    together = {one.property for capabilities in declared.values() for one in capabilities.combinations}
    return {name: dict(_answers(capabilities, sorted(together))) for name, capabilities in declared.items()}


def _answers(capabilities: Capabilities, together: list[str]) -> Iterator[tuple[str, Cell]]:
    for field in dataclasses.fields(capabilities):
        answer = getattr(capabilities, field.name)
        if field.name == "attn_types":
            yield from ((attn_type.name, _cell(answer[attn_type])) for attn_type in AttentionType)
        elif field.name == "rules":
            yield from ((rule.label, _cell(capabilities.answer(name))) for name, rule in RULES.items())
        elif field.name not in ("backend", "combinations"):
            yield field.name.replace("_", " "), _cell(answer)
    reasons = {one.property: one.reason for one in capabilities.combinations}
    for text in together:
        yield f"together: {text}", ("no", reasons[text]) if text in reasons else ("", "")


def _cell(answer: Answer | Values) -> Cell:
    if isinstance(answer, bool | No):
        return ("yes", "") if answer else ("no", str(answer))
    return str(answer), answer.why


def _with_footnotes(tables: dict[str, dict[str, Cell]]) -> list[str]:
    reasons: dict[str, int] = {}

    def shown(answer: str, why: str) -> str:
        return f"{answer} [{reasons.setdefault(why, len(reasons) + 1)}]" if why else answer

    properties = next(iter(tables.values()))
    lines = table(("", *tables), ([text, *(shown(*of[text]) for of in tables.values())] for text in properties))
    return [*lines, "", *(f"{number}. {why}" for why, number in reasons.items())]


def _differences(usual: dict[str, dict[str, Cell]], tables: dict[str, dict[str, Cell]]) -> list[str]:
    rows = [
        (name, text, answer, why)
        for name, cells in tables.items()
        for text, (answer, why) in cells.items()
        if usual[name][text] != (answer, why)
    ]
    return table(("backend", "property", "then", "why"), rows) if rows else ["Nothing changes."]
