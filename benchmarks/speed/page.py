"""docs/generated/performance.md, from performance.json beside it."""

import statistics
from collections.abc import Iterator, Sequence

from attn_fuzz import outputs
from attn_lab import pages
from attn_lab.pages import PAGES, table
from attn_parity.timing import Spread

from benchmarks.participants.attention import FA3, OURS, PAGED, PEERS, SDPA, TRITON
from benchmarks.results import Head, in_words
from benchmarks.speed import performance
from benchmarks.speed.performance import Performance, StoredRun, case_of
from benchmarks.speed.reach import standing, time_of
from benchmarks.speed.results import CaseResult, Run
from benchmarks.steps.cases import CASES
from benchmarks.steps.traffic import TRAFFIC

PAGE, DATA = PAGES / "performance.md", PAGES / "performance.json"
REACH = {case.name: case.reach for case in CASES}
WORST = 10
LAUNCH_MS = 0.01
"""The launch is a large part of a call whose floor is below this: such calls are counted apart."""
PACKED = ("X_PACKED", "SHUFFLED")
"""Layouts whose keys are no rows of dims. Only kernels for AMD's GPUs ask for them."""
PREFACE = """\
# Speed, measured

`python -m benchmarks speed --write` adds a run to performance.json beside this page, and writes the page of it; `speed --page`
writes the page alone. Commands of old runs name options as they were.

- The *floor* of a case is a launch and the longer one of two times. The first is the bytes of q, of the output and of all keys
  and values that some query sees, once for each KV head, divided by the bandwidth of a copy. The second is the FLOPs of all
  visible pairs divided by the rate of products of large matrices that follow each other for seconds. A launch is an empty
  kernel in a graph. All three are measured in the same run. Reading alone is faster than copying, and a short product is
  faster than a long one, so a little more than 100 % of the floor's speed is possible. The *sum* adds both times: a step whose
  decodes move bytes while its prompts compute comes between the two.
- Times are medians of CUDA graph replays. The participants take turns. The spread is from the 10th to the 90th percentile.
- Each participant's output is compared with float64 on sampled rows before it is timed and after it.
- vLLM and AITER are the Triton kernels of their packages on PyPI. AITER's kernels run with AITER's choices for gfx942: their
  times say nothing about AITER on ROCm.
- FlashAttention-3 and FlashMLA are those of vLLM's wheel, compiled for Hopper. Their schedules are computed beforehand, as vLLM
  does once for a step. An *engine* is one of these two, vLLM or AITER.
- SDPA is PyTorch's dense attention. Its keys and values were gathered beforehand, so it pays nothing for paging.
- All cases are bfloat16. Unless a case says otherwise, H/HK is 32/8, D is 128, and blocks of 16 are in random order. Cases
  named MLA are of latent attention in DeepSeek-V3's sizes (512 + 64), where N is the number of query heads. vLLM's kernel for
  them is one for decodes: each query token is a row of its own to it, those of an extend, too. Where K and V are expanded, V
  is padded to the width of K for flash attention.
"""
_DRAWN = f"""
Layers are of the models in `benchmarks/steps/models.toml`, and steps are drawn by `benchmarks/steps/traffic.py`: nobody chose
a shape. A call whose floor is below {1e3 * LAUNCH_MS:g} us is counted as *small*: its launch takes as long as its work.
X_PACKED and SHUFFLED are layouts of kernels for AMD's GPUs. Larger calls over one of them are counted once more as *packed*,
and all other larger calls as *in rows*.
"""


def write(run: Run | None = None) -> None:
    """Write the page of performance.json, after adding a run to it, if one is given."""
    stored = performance.read(DATA)
    if run is not None:
        stored = performance.with_run(stored, run)
        outputs.write(DATA, performance.text(stored))
    pages.write(PAGE, text(stored))


def text(stored: Performance) -> str:
    """The page, whole."""
    lines = PREFACE.splitlines()
    for run in stored.speed:
        cases = [case_of(run, case) for case in run.cases]
        drawn = any(case.traffic for case in cases)
        lines += _heading("on drawn shapes" if drawn else "", run)
        lines += _rates(run)
        lines += _of_drawn(run, cases) if drawn else _of_chosen(run, cases)
        lines += _notes(cases, run.unmeasured)
    return "\n".join(lines) + "\n"


def _heading(what: str, run: Head) -> list[str]:
    """The heading of a run: its machine, versions and command."""
    lines = ["", f"## {run.machine}{what and f', {what}'}", ""]
    lines += [f"{in_words(run.versions)}. Commit {run.commit}, `{run.command}`."]
    return lines if run.of_value else [*lines, "", "**Sizes are tiny or there was no GPU: no number here has any value.**"]


def _rates(run: StoredRun) -> list[str]:
    rates, columns = run.rates, ("read", "copy, read and written", "matmul", "an empty launch")
    cells = [f"{rate / 1e12:.3g} TB/s" for rate in (rates.read, rates.copy)]
    cells += [f"{rates.matmul / 1e12:.4g} TFLOP/s", f"{1e3 * rates.launch:.2g} us"]
    return ["", *table(columns, [cells], columns)]


def _of_chosen(run: StoredRun, cases: Sequence[CaseResult]) -> Iterator[str]:
    yield from ("", *_summary(run, cases), "")
    yield "In brackets: for our time, the share of the floor's speed; for a peer's time, how many times as long as ours it is."
    yield "*Matmul*: our FLOPs over the sustained matmul rate."
    columns = ("case", "floor, ms", "ours, ms", "spread", "matmul", *PEERS, "goal")
    yield from ("", *table(columns, (_row(run, case) for case in cases), columns[1:-1]))
    if run.host_us:
        yield from (
            "",
            "Microseconds of the host for one eager call with 4 requests of 16 keys, which the device does not end:",
        )
        yield from ("", *table(list(run.host_us), [[f"{us:.0f}" for us in run.host_us.values()]], list(run.host_us)))


def _summary(run: StoredRun, cases: Sequence[CaseResult]) -> Iterator[str]:
    """The number of cases that reach their goals, the others, and the number of cases in which a peer is faster."""
    found = {case.name: standing(REACH.get(case.name), case, run.rates) for case in cases}
    reached = [name for name, one in found.items() if one.reached]
    short = {name: one.text for name, one in found.items() if one.reached is False}
    yield f"- {len(reached)} of {len(reached) + len(short)} cases with a goal, or with a paged peer, reach it or are as fast."
    yield from (f"- Short: {name}: {text}" for name, text in short.items())
    for peer in PEERS:
        if times := [(ours.ms, theirs.ms) for case in cases if (ours := _ours(case)) and (theirs := time_of(case, peer))]:
            yield f"- Our kernels are faster than {peer} in {sum(a < b for a, b in times)} of {len(times)} cases."


def _ours(case: CaseResult):
    return time_of(case, OURS)


def _row(run: StoredRun, case: CaseResult) -> list[str]:
    ours, (is_reached, goal) = _ours(case), standing(REACH.get(case.name), case, run.rates)
    cells, matmul = [_missing(case, OURS), ""], ""
    if ours is not None:
        cells = [f"{ours.ms:.3g} ({case.floor_ms / ours.ms:.0%})", f"{ours.p10:.3g}-{ours.p90:.3g}"]
        matmul = f"{case.flops / (ours.ms / 1e3) / run.rates.matmul:.0%}" if case.flops else ""
    word = {True: "reached", False: "short", None: ""}[is_reached]
    told = ": ".join(part for part in (word, goal) if part)
    return [case.name, f"{case.floor_ms:.3g}", *cells, matmul, *(_peer(case, peer) for peer in PEERS), told]


def _peer(case: CaseResult, peer: str) -> str:
    """A peer's time, and how many times as long as ours it is."""
    ours, theirs = _ours(case), time_of(case, peer)
    if theirs is None:
        return _missing(case, peer)
    return f"{theirs.ms:.3g}" if ours is None else f"{theirs.ms:.3g} ({theirs.ms / ours.ms:.2f})"


def _missing(case: CaseResult, name: str) -> str:
    return case.results[name].verdict if name in case.results else ""


def _notes(cases: Sequence[CaseResult], unmeasured: Sequence[str]) -> list[str]:
    """Sentences on results for which no table has a column."""
    lines = []
    for case in cases:
        for name, result in case.results.items():
            ours, is_chosen = _ours(case), case.traffic is None
            if result.time is None:
                lines.append(f"* {case.name}, {name}: {result.verdict}: {result.why}")
            elif name not in (OURS, *PEERS) and ours is not None and is_chosen:
                times = result.time.ms / ours.ms
                lines.append(f"* {case.name}, {name}: {result.time.ms:.3g} ms, {times:.2f} times as long as ours")
    lines += (
        [f"* Not measured, for lack of time: {len(unmeasured)} of {len(unmeasured) + len(cases)} cases."] if unmeasured else []
    )
    return ["", *lines] if lines else []


def share(case: CaseResult, name: str = OURS) -> float | None:
    """The floor's time over a participant's."""
    time = time_of(case, name)
    return None if time is None else case.floor_ms / time.ms


def best(case: CaseResult, names: Sequence[str]) -> tuple[str, Spread] | None:
    """The fastest of some participants, and its time."""
    times = [(name, time) for name in names if (time := time_of(case, name)) is not None]
    return min(times, key=lambda pair: pair[1].ms, default=None)


def ratio(case: CaseResult, names: Sequence[str]) -> float | None:
    """The time of the fastest of some participants over ours: below 1 it is faster."""
    ours, found = _ours(case), best(case, names)
    return None if ours is None or found is None else found[1].ms / ours.ms


def slower_than_a_peer(case: CaseResult) -> float | None:
    """The factor by which the best Triton peer is faster, if it is faster by more than the spread of both."""
    ours, found = _ours(case), best(case, TRITON)
    return ours.ms / found[1].ms if ours is not None and found is not None and found[1].p90 < ours.p10 else None


def _of_drawn(run: StoredRun, cases: Sequence[CaseResult]) -> Iterator[str]:
    yield from _DRAWN.splitlines()
    engine = ("best engine / ours, least", "tenth percentile", "median", "ninetieth percentile")
    columns = ("class", "cases", *engine, "best Triton / ours, least", "median", f"{FA3} / ours, least", "median")
    columns = (*columns, *(f"{name} / ours, median" for name in SDPA), "share of the floor, median", "of the sum, median")
    yield from ("", *table(columns, _classes(run, cases), columns[1:]))
    found = sorted((times, case) for case in cases if case.floor_ms >= LAUNCH_MS and (times := ratio(case, PAGED)) is not None)
    yield from ("", f"The {WORST} furthest behind the best engine:", "")
    columns = ("case", "best engine", "its time / ours", "share of the floor")
    yield from table(columns, (_behind(times, case) for times, case in found[:WORST]), columns[2:])
    behind = sorted(((times, case.name) for case in cases if (times := slower_than_a_peer(case))), reverse=True)
    if behind:
        yield from ("", "Where a Triton peer is faster beyond the spread of both:", "")
        yield from (f"* {name}: {times:.2f}x" for times, name in behind)


def _behind(times: float, case: CaseResult) -> list[str]:
    engine, of_floor = best(case, PAGED), share(case)
    assert engine is not None
    assert of_floor is not None
    return [case.name, engine[0], f"{times:.2f}", f"{of_floor:.0%}"]


def _classes(run: StoredRun, cases: Sequence[CaseResult]) -> Iterator[list[object]]:
    large = [case for case in cases if case.floor_ms >= LAUNCH_MS]
    packed = [case for case in large if any(f", {layout} " in case.name for layout in PACKED)]
    classes = {traffic: [case for case in large if case.traffic == traffic] for traffic in TRAFFIC}
    classes |= {"in rows": [case for case in large if case not in packed], "packed": packed}
    classes |= {"small": [case for case in cases if case.floor_ms < LAUNCH_MS], "all": list(cases)}
    for name, members in classes.items():
        timed = [(case, ours) for case in members if (ours := _ours(case)) is not None]
        if timed:
            cells = [
                *_quantiles(members, PAGED, (0, 10, 50, 90)),
                *_quantiles(members, TRITON, (0, 50)),
                *_quantiles(members, (FA3,), (0, 50)),
                *(cell for peer in SDPA for cell in _quantiles(members, (peer,), (50,))),
            ]
            floor = statistics.median(case.floor_ms / ours.ms for case, ours in timed)
            of_sum = statistics.median(run.rates.sum_ms(case.flops, case.bytes) / ours.ms for case, ours in timed)
            yield [name, len(timed), *cells, f"{floor:.0%}", f"{of_sum:.0%}"]


def _quantiles(cases: Sequence[CaseResult], names: Sequence[str], percents: Sequence[int]) -> list[str]:
    """Percentiles of our times over those of the best of some participants. The first cell has the number of cases, too."""
    found = sorted(times for case in cases if (times := ratio(case, names)) is not None)
    cells = [f"{found[round(percent / 100 * (len(found) - 1))]:.2f}" if found else "" for percent in percents]
    return [f"{cells[0]} ({len(found)})", *cells[1:]] if found else cells
