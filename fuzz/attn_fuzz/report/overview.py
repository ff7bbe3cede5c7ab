"""A case and its verdict as a short table for the terminal."""

import msgspec
from attn_fuzz.cases.case import Case
from attn_fuzz.verdict.verdict import Verdict
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

_MEANING = {
    "ordinary_writes": "the second layer writes no NaN and no infinity",
    "saturated": "some elements of k and v are infinite",
    "recycled": "keys that no query sees are poisoned",
    "finite_slots": "slots without a key hold finite numbers, not NaN",
}
"""Words for flags whose names do not explain them."""


def summary(case: Case, verdict: Verdict | None) -> RenderableType:
    """A table of the case and its verdict: the fields that differ from their defaults, and a row per request."""
    columns, rows = requests(case, verdict)
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, justify="right" if column in ("request", "query", "keys") else "left")
    for row in rows:
        table.add_row(*row)
    return Group(*headline(verdict), Text(properties(case)), table)


def headline(verdict: Verdict | None) -> list[Text]:
    """The verdict in a line; no line if the case was not run."""
    if verdict is None:
        return []
    if verdict.failed:
        return [Text(f"{verdict.kind}: {verdict.message}", style="bold red")]
    if verdict.kind == "limit":
        return [Text(f"not run, by a limit of this tool: {verdict.message}", style="bold")]
    error = f", largest error {verdict.ratio:.2f} of its bound" if verdict.ratio else ""
    return [Text(f"{verdict.kind}{error}", style="bold")]


def requests(case: Case, verdict: Verdict | None) -> tuple[list[str], list[list[str]]]:
    """The table of requests, as names of columns and rows. A wrong request has its worst element beside it."""
    found = {difference.request: difference for difference in reversed(verdict.differences)} if verdict else {}
    columns = ["request", "query", "keys", "causal", "blocks"]
    columns += ["ranges"] if case.bidirectional_ranges else []
    columns += ["differs", "worst at", "got", "expected", "bound"] if found else []
    rows = []
    for r, request in enumerate(case.requests):
        row = [str(r), str(request.query_len), str(request.seq_len), "yes" if request.causal else "no", _short(request.blocks)]
        row += (
            [" ".join(f"{first}..{last}" for first, last in request.bidirectional_ranges)] if case.bidirectional_ranges else []
        )
        if worst := found.get(r):
            place = f"row {worst.row} head {worst.head}" + ("" if worst.dim is None else f" dim {worst.dim}")
            row += [
                f"{worst.tensor}: {worst.rows} rows",
                place,
                f"{worst.got:.6g}",
                f"{worst.expected:.6g}",
                f"{worst.bound:.2g}",
            ]
        rows.append(row + [""] * (len(columns) - len(row)))
    return columns, rows


def properties(case: Case) -> str:
    """The fields of the case that differ from their defaults."""
    return "  ".join(_changed(case, leave_out=("target", "requests")))


def _changed(struct: msgspec.Struct, leave_out: tuple[str, ...] = ()) -> list[str]:
    values = ((field, getattr(struct, field.name)) for field in msgspec.structs.fields(struct))
    return [_shown(field.name, value) for field, value in values if field.name not in leave_out and value != field.default]


def _shown(name: str, value: object) -> str:
    if isinstance(value, msgspec.Struct):
        return f"{name}=({' '.join(_changed(value))})"
    return f"{name}={value} ({_MEANING[name]})" if name in _MEANING else f"{name}={value}"


def _short(blocks: tuple[int, ...]) -> str:
    return " ".join(map(str, blocks[:8])) + (f" … ({len(blocks)} blocks)" if len(blocks) > 8 else "")
