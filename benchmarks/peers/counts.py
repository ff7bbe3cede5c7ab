"""What launches execute on the emulator, in cases that it runs in seconds."""

from collections.abc import Mapping
from itertools import groupby
from typing import Any

import torch
from attn_amdgcn import Accesses, load, prepare
from attn_amdgcn.counts import CLASSES, COUNTED, totals
from attn_fuzz.emulated.compilation import launchable
from attn_fuzz.emulated.compiler import Ready
from attn_fuzz.emulated.emulation import run_ready
from attn_lab.pages import table

from benchmarks.measuring.check import MAX_ERROR, expected_rows, relative_error, sampled_rows
from benchmarks.peers.kind import CPU, Kind
from benchmarks.peers.launches import Launch, compiled
from benchmarks.peers.results import Results, Row
from benchmarks.steps.calls import Call
from benchmarks.steps.cases import GPT_OSS, Attention

SMALL = (
    Attention(name="decode, 4 x 1k", query_lens=(1,) * 4, seq_lens=(1024,) * 4),
    Attention(name="decode, fp8 cache, 4 x 1k", query_lens=(1,) * 4, seq_lens=(1024,) * 4, float8_cache=True),
    Attention(name="decode, H64/HK8/D64 + sinks, 4 x 1k", query_lens=(1,) * 4, seq_lens=(1024,) * 4, **GPT_OSS),
    Attention(name="prefill, 1 x 512", query_lens=(512,), seq_lens=(512,)),
    Attention(name="prefill, window 128, 1 x 512", query_lens=(512,), seq_lens=(512,), window=128),
    Attention(name="extend, 2 x 128 new on 512", query_lens=(128,) * 2, seq_lens=(640,) * 2),
)
"""The emulator runs each in seconds."""
_SHOWN_CLASSES = ("matrix", "vector", "global memory", "scratch memory", "LDS")
_PREFACE = """
## What they execute

With {versions}. [The emulator](../reference/emulator.md) runs the launches of small cases, and the outputs were compared with
attention in float64. **These are counts and no times.** Small cases are split into parts more eagerly than large ones, so
programs and reductions weigh more. *Padding* is multiply-adds of matrix instructions over those of visible pairs of a query and
a key; *lines* are those of 128 bytes that vector instructions touch in global memory, *over least* over the fewest that each
instruction's bytes could fill; *conflicts* are passes of LDS beyond the first one, for each phase; *known* is the share of
accesses to LDS whose phases AMD documents.
"""


def _of_launch(architecture: str, launch: Launch) -> tuple[dict[str, float], str]:
    """Run a launch on the emulator, and count."""
    binary, source = compiled(architecture, launch)
    ready = launchable(binary, source)
    program = prepare(load(ready.text))
    arguments: dict[str, Any] = dict(zip(launch.kernel.arg_names, launch.arguments, strict=False)) | launch.named
    grid = tuple(launch.grid(arguments) if callable(launch.grid) else launch.grid)
    accesses = Accesses(architecture)
    report = run_ready(Ready(program, ready), arguments, grid, watches=(accesses,))
    x, y, z, *_ = (*grid, 1, 1)
    return {"programs": x * y * z, "num_warps": int(binary.metadata.num_warps), **totals(program, report, accesses)}, ""


def _finished(rows: list[Row], call: Call, out: torch.Tensor) -> list[Row]:
    """Rows with the multiply-adds that the call needs, and with the fault in its output."""
    sampled = sampled_rows(call)
    error = relative_error(out, sampled, expected_rows(call, sampled))
    wrong = "" if error <= MAX_ERROR else f"wrong: relative error {error:.2g}"
    needed = {"needed": round(call.case.flops / 2)}
    return [row._replace(facts={**row.facts, **needed}, why=row.why or wrong) for row in rows]


def _cells(facts: Mapping[str, float]) -> list[str]:
    def ratio(part: str, whole: str) -> str:
        return f"{facts[part] / facts[whole]:.2f}" if facts[whole] else ""

    known = facts["LDS accesses with known phases"] / facts["LDS accesses"] if facts["LDS accesses"] else None
    return [
        f"{facts['programs']:g} x {facts['num_warps']:g}",
        _short(sum(facts[name] for name in CLASSES)),
        *(_short(facts[name]) for name in _SHOWN_CLASSES),
        _short(sum(facts[name] for name in CLASSES if name not in _SHOWN_CLASSES)),
        ratio("multiply-adds", "needed") if facts["multiply-adds"] else "",
        _short(facts["lines of 128"]),
        ratio("lines of 128", "least lines of 128"),
        ratio("LDS conflicts", "LDS phases"),
        "" if known is None else f"{known:.0%}",
    ]


def _short(number: float) -> str:
    """Three digits, in thousands or millions."""
    for unit, name in ((10**6, "M"), (1000, "k")):
        if number >= unit:
            return f"{number / unit:#.3g}".rstrip(".") + name
    return f"{number:g}"


def _section(results: Results) -> list[str]:
    """A table for each architecture."""
    lines = _PREFACE.format(versions=results.versions).splitlines()
    for architecture, rows in groupby(results.rows, key=lambda row: row.architecture):
        columns = ("case", "whose", "kernel", *COUNTS.columns)
        lines += ["", f"### {architecture}", "", *table(columns, map(COUNTS.row, rows), COUNTS.columns)]
    return lines


COUNTS = Kind(
    facts=("programs", "num_warps", "needed", *COUNTED),
    columns=(
        *("programs", "instructions", "matrix", "vector", "global", "scratch", "LDS", "others"),
        *("padding", "lines", "over least", "conflicts", "known"),
    ),
    cells=_cells,
    of_launch=_of_launch,
    cases={case.name: case for case in SMALL},
    architectures=("gfx942", "gfx1201"),
    section=_section,
    device=CPU,
    finished=_finished,
    checks_outputs=True,
)
