"""`python -m attn_lab judge`: the sharpness of the judge."""

import bisect
import dataclasses
import functools
import itertools
import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import attn_reference
import click
import msgspec
import torch
from attn_contract import Layout
from attn_fuzz import inputs, outputs
from attn_fuzz.cases import tensors
from attn_fuzz.cases.case import Cache, Case, Request, Values
from attn_fuzz.cases.tensors import Step
from attn_fuzz.errors import InputError
from attn_fuzz.report.run import SCHEMA
from attn_fuzz.strategies.cases import VALUES
from attn_fuzz.verdict import ratios
from attn_fuzz.verdict.judge import judge as judged
from attn_fuzz.verdict.rounding import Rounding
from attn_lab.options import check_option
from attn_lab.pages import PAGES, table, write_or_check
from attn_parity.console import plain_table, results

BLOCK_SIZE, HEAD_SIZE, GROUP_SIZE = 16, 64, 2
LENGTHS = [128 << (2 * i) for i in range(5)]
# of a kernel: the interpreter's, and a GPU's that splits the keys
ROUNDING = Rounding(keys_per_tile=64, splits=8, exact_division=True)
FOLDER = PAGES / "judge"
PAGE = PAGES / "judge-measured.md"
PHASES = ("prefill", "extend", "decode", "multi-token decode", "cross", "encoder")
DTYPES = ("float32", "float16", "bfloat16", "fp8_e4m3fn", "fp8_e4m3fnuz")


class FuzzRun(msgspec.Struct):
    """The part of a run of `attn-parity fuzz` that calibration reads."""

    target: str
    device: str
    versions: dict[str, str]
    seed: int
    examples: int
    ratios: dict[str, Annotated[list[int], msgspec.Meta(min_length=ratios.NUM_BINS, max_length=ratios.NUM_BINS)]]
    error: str | None
    failures: list[Any]


@click.group("judge")
def command() -> None:
    """Measure how close correct outputs come to the judge's bound, and which wrong ones it sees."""


@command.command()
@click.argument("runs", nargs=-1, required=True, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--name", required=True, help="Name of the file in docs/generated/judge, such as cpu.")
def calibration(runs: tuple[Path, ...], name: str) -> None:
    """Add up runs of one target on one device that agree (`attn-parity fuzz --json RUN.json`)."""
    read = [inputs.read_as(path, SCHEMA, FuzzRun, inputs.MAX_LARGE_BYTES) for path in runs]
    for path, run in zip(runs, read, strict=True):
        if run.failures or run.error:
            raise InputError(f"{path}: expected a run that agrees")
        if not any(name.startswith("out ") for name in run.ratios):
            raise InputError(f"{path}: expected a run that compared elements of `out` with a bound")
        if (run.target, run.device) != (read[0].target, read[0].device):
            raise InputError(f"{path}: expected a run of {read[0].target} on {read[0].device}, as {runs[0]} is")
    total: dict[str, Any] = {"target": read[0].target, "device": read[0].device, "versions": read[0].versions}
    total |= {"seeds": [run.seed for run in read], "examples": sum(run.examples for run in read)}
    counts = functools.reduce(ratios.added, (run.ratios for run in read), {})
    total["rows"] = list(_rows(counts))
    _keep(name, total)


def _keep(name: str, record: dict[str, Any]) -> None:
    """Write a file of JSON with each of `rows`, which come last, on a line."""
    *head, rows = record.items()
    lines = ",\n".join(msgspec.json.encode(row).decode() for row in rows[1])
    FOLDER.mkdir(exist_ok=True, parents=True)
    outputs.write(FOLDER / f"{name}.json", f'{msgspec.json.encode(dict(head)).decode()[:-1]},"rows":[\n{lines}\n]}}\n')


def _rows(counts: Mapping[str, Sequence[int]]) -> Iterator[tuple[object, ...]]:
    """Rows for `out`, then by tensor, dtype and phase: the number of elements, and edges above 50 %, 99 % and all of them."""
    of_out = (bins for name, bins in counts.items() if name.startswith("out "))
    yield ("all", "", "", *_edges([sum(bins) for bins in zip(*of_out, strict=True)]))
    for tensor, dtype, phase in itertools.product(("out", "lse"), DTYPES, PHASES):
        if bins := counts.get(f"{tensor} {dtype} {phase}"):
            yield (tensor, dtype, phase, *_edges(bins))


@command.command()
@check_option
def page(check: bool) -> int:
    """Write judge-measured.md from the files that the other commands write."""
    return write_or_check({PAGE: "\n".join(_page()) + "\n"}, "python -m attn_lab judge page", checks=check)


def _runs() -> list[Path]:
    return sorted(path for path in FOLDER.glob("*.json") if path.stem != "sensitivity")


def _page() -> Iterator[str]:
    yield from (
        "# How sharp the judge is, measured",
        "",
        "`python -m attn_lab judge page` writes this page from the files in [judge/](judge).",
        "[judge.md](../reference/judge.md) derives the bound.",
        "",
        "Error over bound of the elements of `out` in runs in which all cases agree:",
        "",
    )
    runs = [inputs.read_json(path) for path in _runs()]
    rows = ((f"`{run['target']}` on {run['device']}", run["examples"], *run["rows"][0][3:]) for run in runs)
    columns = ("run", "examples", "elements", "half are below", "99 % are below", "all are below")
    yield from table(columns, rows, columns[1:])
    yield from _one_key_among_n()
    yield from (
        "",
        "## Error over bound, by dtype and phase",
        "",
        "Elements are counted in bins whose edges are a quarter of a factor of 2 apart; the tables name the upper edges of",
        "bins. Cases that are compared bitwise have no bound and are not counted.",
    )
    for run in runs:
        versions = ", ".join(f"{name} {version}" for name, version in run["versions"].items())
        yield from ("", f"### `{run['target']}` on {run['device']}: {run['examples']} examples", "")
        yield f"{versions}; seeds {', '.join(map(str, run['seeds']))}."
        columns = ("tensor", "dtype", "phase", "elements", "50 %", "99 %", "largest")
        yield from ("", *table(columns, run["rows"][1:], columns[3:]))


def _one_key_among_n() -> Iterator[str]:
    """The smallest effect that is seen: a kernel that forgets one key among n."""
    found = inputs.read_json(FOLDER / "sensitivity.json")
    yield from (
        "",
        "## One key among n",
        "",
        f"In a decode step with D = {HEAD_SIZE}, the kernel forgets the last of n keys. The table gives the largest error",
        f"over bound of the output, as the median over {found['seeds']} seeds, and in brackets the share of the seeds in",
        "which the judge sees the bug. The kinds of values are those of `attn_fuzz.cases.contents`. Exact numbers and",
        "one-hot values show the bug at every length and in every dtype. No single kind of values shows every bug.",
        "",
    )
    numbers = [f"n = {n}" for n in LENGTHS]
    yield from table(("dtype", "values", *numbers), found["rows"], numbers)
    yield from ("", f"`python -m attn_lab judge sensitivity --seeds {found['seeds']}`")


def _edges(counts: Sequence[int]) -> list[object]:
    return [sum(counts), *(f"{_quantile(counts, share):.2g}" for share in (0.5, 0.99, 1))]


def _quantile(counts: Sequence[int], share: float) -> float:
    """The upper edge of the bin that ends at or after this share of the elements."""
    up_to = list(itertools.accumulate(counts))
    return ratios.EDGES[bisect.bisect_left(up_to, share * up_to[-1])]


@command.command()
@click.option("--seeds", type=click.IntRange(min=1), default=5, show_default=True, help="Number of seeds.")
def sensitivity(seeds: int) -> None:
    """Forget the last of n keys: the largest error / bound of the output (median over seeds), and how often it is seen.

    Written to docs/generated/judge/sensitivity.json, and printed.
    """
    rows = []
    numbers = tuple(map(str, LENGTHS))
    shown = plain_table("dtype", "values", *numbers, right=numbers)
    for dtype in ("float32", "float16", "bfloat16"):
        for kind in VALUES:
            rows.append((dtype, kind, *(_cell([forgotten(dtype, kind, n, seed) for seed in range(seeds)]) for n in LENGTHS)))
            shown.add_row(*rows[-1])
    results.print(shown)
    _keep("sensitivity", {"seeds": seeds, "rows": rows})


def forgotten(dtype: str, kind: str, n: int, seed: int) -> tuple[float, bool]:
    """Error / bound of a decode step whose kernel forgets the last of n keys, and whether the judge sees it."""
    case = Case(
        target="reference-fp32",
        dtype=dtype,  # pyright: ignore[reportArgumentType]
        group_size=GROUP_SIZE,
        head_size=HEAD_SIZE,
        scale=HEAD_SIZE**-0.5,
        requests=(Request(1, n, tuple(range(n // BLOCK_SIZE))),),
        cache=Cache(layout=Layout.BLOCKS_FIRST_NHD, block_size=BLOCK_SIZE, num_blocks=n // BLOCK_SIZE),
        writes=False,
        values=Values(kind, seed),  # pyright: ignore[reportArgumentType]
    )
    step = tensors.build(case)
    right = judged(case, _attended(step, n), ROUNDING)
    assert right.kind == "agree", (case, right.message)
    wrong = judged(case, _attended(step, n - 1), ROUNDING)
    return wrong.ratio, wrong.kind != "agree"


def _attended(step: Step, seq_len: int) -> Step:
    assert step.kv_cache is not None
    batch = dataclasses.replace(step.batch, seq_lens=torch.full_like(step.batch.seq_lens, seq_len))
    attn_reference.paged_attention(step.q, step.kv_cache, step.layer, batch, out=step.out)
    return step


def _cell(found: list[tuple[float, bool]]) -> str:
    ratio, seen = statistics.median(ratio for ratio, _ in found), sum(seen for _, seen in found) / len(found)
    return f"{f'{ratio:.2g}' if ratio else 'bitwise'} ({seen:.0%})"
