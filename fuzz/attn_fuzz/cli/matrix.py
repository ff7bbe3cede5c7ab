"""`attn-parity matrix`: which features each side has, and how often the fuzzer draws each pair of them."""

from itertools import combinations
from pathlib import Path

import click
import hypothesis
from attn_fuzz import coverage, runner
from attn_fuzz.cli.fuzz import PROFILES
from attn_fuzz.cli.options import check_writable, default_workers, json_option, notes, results, workers_option, write_json
from attn_fuzz.coverage import NAMES, Coverage
from attn_fuzz.engine import Plan
from attn_fuzz.features import FEATURES, undefined

SCHEMA = "attn-parity.matrix/1"
PAGE = Path("docs/coverage.md")
SEED = 0
# the CPU's ci job, and what a GPU does over night
DRAWS = {"ci": "cpu", "nightly": "cuda"}
SIDES = ("reference-fp32", "triton", "triton-varlen", "triton-cascade", "triton-invariant")


@click.command("matrix")
@click.option("--check", is_flag=True, help="Change nothing; exit 1 if the page is not current.")
@click.option("--page", type=click.Path(dir_okay=False, path_type=Path), default=PAGE, show_default=True, help="The page.")
@workers_option
@json_option
def command(check: bool, page: Path, workers: int | None, json_file: Path | None) -> int:
    """Write the table of features, sides and drawn pairs. Nothing is run; needs no GPU."""
    check_writable(json_file)
    if not page.parent.is_dir():
        raise click.ClickException(f"--page: the folder {page.parent} does not exist")
    workers = workers or default_workers("cpu")
    drawn = {}
    for profile, device in DRAWS.items():
        plan = Plan(target="triton", device=device, examples=PROFILES[profile], seed=SEED, folder=page.parent)
        notes.print(f"drawing {plan.examples} cases of the {profile} profile")
        drawn[profile] = coverage.cover(runner.shards(plan), workers, SIDES)
    nightly = drawn["nightly"]
    text = _page(drawn)
    if json_file:
        write_json(json_file, _as_json(drawn))
    wrong = [f"never drawn together: {a} and {b}" for a, b in coverage.missing(nightly)]
    wrong += [f"drawn together, though undefined: {a} and {b}" for a, b in coverage.impossible(nightly)]
    if check:
        if not page.exists() or page.read_text() != text:
            wrong.append(f"{page} is not current: run `attn-parity matrix`")
    else:
        page.write_text(text)
        results.print(f"{page} written")
    for line in wrong:
        results.print(line, soft_wrap=True)
    defined = sum(1 for pair in combinations(NAMES, 2) if not undefined(*pair))
    results.print(f"{len(NAMES)} features, {defined} defined pairs, {len(wrong)} wrong")
    return 1 if wrong else 0


def _page(drawn: dict[str, Coverage]) -> str:
    ci, nightly = drawn["ci"], drawn["nightly"]
    lines = [
        "# What is supported, and what the fuzzer draws",
        "",
        f"Written by `attn-parity matrix` with Hypothesis {hypothesis.__version__}; `attn-parity matrix --check` says whether",
        "it is current. Nothing is run for it: the strategies draw, for the target `triton`, the cases of",
        f"`attn-parity fuzz --profile ci --seed {SEED}` on a CPU ({ci.examples}) and of",
        f"`attn-parity fuzz --profile nightly --seed {SEED}` on a GPU ({nightly.examples}).",
        "",
        "## Features and sides",
        "",
        "A side that is not marked refuses the feature with the sentence below the table. `ci` and `nightly` count the cases",
        "that have it; `rarest partner` is the feature that nightly drew least often with it, of those that can be.",
        "",
        "| feature | " + " | ".join(SIDES) + " | ci | nightly | rarest partner |",
        "|---|" + "---|" * len(SIDES) + "--:|--:|---|",
    ]
    sentences: dict[str, list[str]] = {}
    for feature in FEATURES:
        marks = []
        for side in SIDES:
            reason = nightly.refused[side].get(feature.name)
            marks.append("" if reason else "yes")
            if reason:
                sentences.setdefault(f"{side}: {reason}", []).append(feature.name)
        counts = f"{ci.single.get(feature.name, 0)} | {nightly.single.get(feature.name, 0)}"
        lines.append(f"| {feature.name} | {' | '.join(marks)} | {counts} | {_rarest(feature.name, nightly)} |")
    lines += ["", *(f"* {sentence}: {', '.join(names)}" for sentence, names in sentences.items())]
    lines += ["", "## Pairs that no case has", ""]
    reasons: dict[str, list[str]] = {}
    for a, b in combinations(NAMES, 2):
        if reason := undefined(a, b):
            reasons.setdefault(reason, []).append(f"{a} + {b}")
    lines += [f"* {reason}: {len(pairs)} pairs, such as {pairs[0]}" for reason, pairs in reasons.items()]
    lines += [
        "",
        "## All pairs",
        "",
        "Cases of the nightly profile that have both features; `-` where no case can.",
        "",
    ]
    lines += _triangle(nightly)
    return "\n".join(lines) + "\n"


def _rarest(name: str, drawn: Coverage) -> str:
    counts = {}
    for a, b in combinations(NAMES, 2):
        if name in (a, b) and not undefined(a, b):
            counts[b if a == name else a] = drawn.pairs.get((a, b), 0)
    partner = min(counts, key=lambda other: counts[other])
    return f"{partner}: {counts[partner]}"


def _triangle(drawn: Coverage) -> list[str]:
    """One row per feature, its counts with those before it; columns are numbers, which rows begin with."""
    lines = [
        "| | feature | " + " | ".join(str(i + 1) for i in range(len(NAMES) - 1)) + " |",
        "|--:|---|" + "--:|" * (len(NAMES) - 1),
    ]
    for i, name in enumerate(NAMES):
        cells = ["-" if undefined(other, name) else str(drawn.pairs.get((other, name), 0)) for other in NAMES[:i]]
        lines.append(f"| {i + 1} | {name} | {' | '.join(cells + [''] * (len(NAMES) - 1 - i))} |")
    return lines


def _as_json(drawn: dict[str, Coverage]) -> dict[str, object]:
    return {
        "schema": SCHEMA,
        "seed": SEED,
        "features": NAMES,
        "undefined": [{"pair": pair, "reason": undefined(*pair)} for pair in combinations(NAMES, 2) if undefined(*pair)],
        "profiles": {
            profile: {
                "examples": counted.examples,
                "single": counted.single,
                "pairs": [{"pair": pair, "cases": counted.pairs.get(pair, 0)} for pair in combinations(NAMES, 2)],
                "refused": counted.refused,
            }
            for profile, counted in drawn.items()
        },
    }
