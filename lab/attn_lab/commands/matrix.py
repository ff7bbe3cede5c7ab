"""`python -m attn_lab matrix`: features of each side, how often the fuzzer draws each pair, and what each backend can do."""

import re
from collections import Counter, defaultdict
from itertools import combinations
from pathlib import Path

import click
import hypothesis
from attn_fuzz import inputs
from attn_fuzz.cases.features import undefined
from attn_fuzz.errors import InputError
from attn_fuzz.run import runner
from attn_fuzz.run.shard import FuzzPlan
from attn_lab.matrix import coverage
from attn_lab.matrix.coverage import NAMES, Coverage
from attn_lab.options import check_option
from attn_lab.pages import PAGES, table, write_or_check
from attn_parity.console import notes, progress_bar
from attn_parity.options import PROFILES, cpu_workers_option

PAGE = PAGES / "coverage.md"
SEED, FURTHER_SEEDS = 0, (1, 2)
"""The seed of the page, and the seeds that must draw a pair that it leaves out: some are as rare as one case in 40,000."""
# the CPU's ci job, and what a GPU does over night
DEVICES = {"ci": "cpu", "nightly": "cuda"}
SIDES = ("reference-fp32", "triton", "triton-varlen", "triton-cascade", "triton@invariant")


@click.group("matrix")
def command() -> None:
    """Say what is supported, and which features the fuzzer draws. No kernel runs, and no GPU is needed."""


@command.command("page")
@check_option
@click.option(
    "--only",
    type=click.Choice(["coverage", "backends"]),
    help="Write only coverage.md, or only backends.md (seconds).",
)
@cpu_workers_option
def _page(check: bool, only: str | None, workers: int) -> int:
    """Write coverage.md and backends.md."""
    wrong, texts = [], {}
    if only in (None, "coverage"):
        if check:
            _check_version(PAGE)
        ci, nightly = (_draw(profile, device, workers) for profile, device in DEVICES.items())
        wrong += [f"never drawn together: {a} and {b}" for a, b in _never_drawn(nightly, workers)]
        wrong += [f"drawn together, though undefined: {a} and {b}" for a, b in coverage.impossible(nightly)]
        texts[PAGE] = _text(ci, nightly)
    if only in (None, "backends"):
        from attn_lab.matrix.backends import backend_page  # imports Triton

        texts[PAGES / "backends.md"] = backend_page()
    return write_or_check(texts, "python -m attn_lab matrix page", checks=check, wrong=wrong)


def _check_version(page: Path) -> None:
    """Fail before the work if there is no page, or another version of Hypothesis made it: that version draws other cases."""
    named = re.search(r"with Hypothesis ([\w.]+);", inputs.read_text(page), re.ASCII)
    if named and (version := named[1]) != hypothesis.__version__:
        raise InputError(
            f"{page} counts what Hypothesis {version} draws, and this is {hypothesis.__version__}, which draws other cases: "
            f"install hypothesis=={version}, or write the page anew without --check"
        )


def _plan(profile: str, device: str, seed: int = SEED) -> FuzzPlan:
    return FuzzPlan(target="triton", device=device, examples=PROFILES[profile], seed=seed, folder=Path())


def _never_drawn(nightly: Coverage, workers: int) -> list[tuple[str, str]]:
    """Pairs that neither the nightly profile draws nor, where it leaves some out, the profile by further seeds."""
    pairs = coverage.missing(nightly)
    for seed in FURTHER_SEEDS:
        if pairs:
            left_out = coverage.missing(_draw("nightly", DEVICES["nightly"], workers, seed))
            pairs = [pair for pair in pairs if pair in left_out]
    return pairs


def _draw(profile: str, device: str, workers: int, seed: int = SEED) -> Coverage:
    plan = _plan(profile, device, seed)
    notes.print(f"drawing {plan.examples} cases of the {profile} profile, --seed {seed}")
    with progress_bar(plan.examples) as show_bar:
        return coverage.cover(runner.shards(plan), workers, SIDES, show_bar)


def _text(ci: Coverage, nightly: Coverage) -> str:
    lines = [
        "# What is supported, and what the fuzzer draws",
        "",
        *_summary(nightly),
        "",
        f"`python -m attn_lab matrix page` wrote this page with Hypothesis {hypothesis.__version__}; with `--check` it fails",
        "if the page is not current. No kernel is run for it. The strategies draw what two runs for the target `triton` draw:",
        "",
        f"- `attn-parity fuzz --profile ci --seed {SEED}` on a CPU: {ci.examples} cases.",
        f"- `attn-parity fuzz --profile nightly --seed {SEED}` on a GPU: {nightly.examples} cases.",
        "",
        "## Features and sides",
        "",
        "A side without a mark refuses every case with the feature. The reasons are below the table; where several apply,",
        "the page names the reason that goes with the feature most closely. `ci` and `nightly` count the cases with the",
        "feature. `rarest partner` is the feature that nightly drew least often together with it, of those that a case can",
        "have together.",
        "",
        *_sides(ci, nightly),
        "",
        *_refusals(nightly),
        "",
        "## Pairs that no case has",
        "",
        *_undefined(),
    ]
    return "\n".join(lines) + "\n"


def _summary(nightly: Coverage) -> list[str]:
    """The number of pairs of features that were drawn, and the pairs that were drawn least often."""
    pairs = sorted((nightly.pairs.get(pair, 0), pair) for pair in combinations(NAMES, 2) if undefined(*pair) is None)
    rarest = "; ".join(f"{a} and {b} ({count})" for count, (a, b) in pairs[:3])
    never = sum(not count for count, _ in pairs)
    return [
        f"- Cases without a latent cache have {len(NAMES)} features. A case can have {len(pairs)} pairs of them together.",
        f"- The nightly profile draws {len(pairs) - never} of these pairs. The rarest are {rarest}.",
    ]


def _sides(ci: Coverage, nightly: Coverage) -> list[str]:
    def cells(name: str) -> list[object]:
        marks = ["" if name in nightly.refused[side] else "yes" for side in SIDES]
        return [name, *marks, ci.single.get(name, 0), nightly.single.get(name, 0), _rarest(name, nightly)]

    columns = ("feature", *SIDES, "ci", "nightly", "rarest partner")
    return table(columns, map(cells, NAMES), columns[-3:-1])


def _refusals(drawn: Coverage) -> list[str]:
    features: dict[str, list[str]] = defaultdict(list)
    for side in SIDES:
        for name, reason in drawn.refused[side].items():
            features[f"{side}, {reason}"].append(f"`{name}`")
    return [f"* {sentence}: {', '.join(names)}" for sentence, names in features.items()]


def _undefined() -> list[str]:
    pairs = Counter(undefined(*pair) for pair in combinations(NAMES, 2))
    return table(("why", "pairs"), ((reason, count) for reason, count in pairs.items() if reason), ("pairs",))


def _rarest(name: str, drawn: Coverage) -> str:
    """The feature that was drawn least often together with this one; the first of several."""
    pairs = [pair for pair in combinations(NAMES, 2) if name in pair and undefined(*pair) is None]
    rarest = min(pairs, key=lambda pair: drawn.pairs.get(pair, 0))
    return f"{rarest[rarest[0] == name]}: {drawn.pairs.get(rarest, 0)}"
