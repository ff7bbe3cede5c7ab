"""A run, or a case, as one HTML page: no script, nothing from elsewhere, light and dark as the reader has it."""

import bisect
import itertools
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from xml.etree.ElementTree import Element

import msgspec
from attn_fuzz.cases.case import Case
from attn_fuzz.cases.features import FEATURES
from attn_fuzz.report import again, pictures, svg
from attn_fuzz.report.drawn import can_have
from attn_fuzz.report.grid import Room
from attn_fuzz.report.markup import element, facts, page, table
from attn_fuzz.report.overview import headline, properties, requests
from attn_fuzz.report.run import Found, Run
from attn_fuzz.run.shard import Progress
from attn_fuzz.verdict import ratios
from attn_fuzz.verdict.verdict import Verdict

ROOM = Room(rows=48, columns=128)


def of_run(run: Run) -> bytes:
    """A run as one HTML file that needs no other file: command and figures, failing cases with pictures, what was drawn."""
    return page(
        f"{run.target}: {run.outcome}",
        element("h1", element("span", run.outcome, class_="failed" if run.failures or run.error else "passed"), run.target),
        *([element("p", run.error, class_="failed")] if run.error else []),
        _command(*run.command),
        facts(_facts(run)),
        _time(run),
        *(_failure(found) for found in run.failures),
        *([_distribution(run.progress), _coverage(run)] if run.has_drawn else []),
    )


def of_case(case: Case, verdict: Verdict | None, file: Path) -> bytes:
    """The page of one case, with the verdict if a target ran it."""
    return page(f"{file.name}", element("h1", file.name), _command(*again(case, file, verdict)), *_drawn(case, verdict))


def _facts(run: Run) -> dict[str, str]:
    return {
        "device": run.device,
        "examples": f"{run.examples} of {run.planned}",
        "past cases run first": str(run.replayed),
        "rate": f"{run.examples / max(run.seconds, 1e-9):.1f}/s over {run.seconds:.1f} s",
        "largest error / bound": f"{run.max_ratio:.3g}",
        "seed": str(run.seed),
        "workers": str(run.workers),
        "refused": f"{run.refused}, rightly",
        "paths taken": _listed(run.events),
        "known findings": _listed(run.known),
        **({"worker processes that died": str(run.restarted)} if run.restarted else {}),
        **({"no longer failing": ", ".join(finding.name for finding in run.fixed)} if run.fixed else {}),
        **run.versions,
    }


def _listed(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in counts.items()) or "none"


def _time(run: Run) -> Element:
    """A bar that shows on what the workers spent their time."""
    spent = dict(run.spent)
    everything = max(sum(p.seconds for p in run.progress), sum(spent.values()), 1e-9)
    spent["drawing, shrinking, waiting"] = everything - sum(spent.values())
    parts = (
        element("span", style=f"flex-grow: {seconds / everything:.3f}", class_=f"part-{i}")
        for i, seconds in enumerate(spent.values())
    )
    names = [f"{name} {seconds:.1f} s" for name, seconds in spent.items()]
    bar = element("div", *parts, class_="parts", role="img", aria_label=f"time of all workers: {', '.join(names)}")
    legend = svg.legend((f"part-{i}", "", name) for i, name in enumerate(names))
    return element("section", element("h2", "Where the time went"), bar, legend)


def _failure(found: Found) -> Element:
    failure = found.failure
    size = "the smallest case" if failure.minimal else "not yet the smallest case"
    sizes = (msgspec.structs.astuple(size) for size in failure.path)
    # a step that only renumbers, or lowers one number among others, changes none of the sizes
    steps = [[str(number) for number in next(same)] for _, same in itertools.groupby(sizes, key=lambda size: size[1:])]
    columns = ["cases tried", "requests", "query rows", "keys", "blocks", "fields not the simplest"]
    shrunk = element(
        "details",
        element("summary", f"found after {failure.found_after} examples, in {failure.found_seconds:.1f} s; {size}"),
        table("sizes of the case while it was shrunk", columns, steps),
    )
    return element(
        "section",
        element("h2", f"Failure: {failure.verdict.kind}"),
        *([element("p", f"{found.past} fails")] if found.past else []),
        *([element("p", "It was met while the failure before it was shrunk.")] if found.while_shrinking else []),
        *_lines(found),
        *_drawn(failure.case, failure.verdict),
        shrunk,
        element("details", element("summary", "the case as it was found"), *_drawn(failure.first, failure.first_verdict)),
        class_="failure",
    )


def _lines(found: Found) -> list[Element]:
    if found.case_file is None:
        return []
    script = [_command("python", str(found.script))] if found.script else []
    return [_command(*again(found.failure.case, found.case_file, found.failure.verdict)), *script]


def _drawn(case: Case, verdict: Verdict | None) -> list[Element]:
    """The case in words and in pictures."""
    return [
        *(element("p", line.plain, class_="failed" if verdict and verdict.failed else "passed") for line in headline(verdict)),
        element("p", properties(case) or "every property is the simplest", class_="properties"),
        table("requests", *requests(case, verdict)),
        element("div", *(svg.picture(picture) for picture in pictures.draw(case, verdict, ROOM)), class_="pictures"),
    ]


def _distribution(progress: Sequence[Progress]) -> Element:
    counts: dict[str, list[int]] = {}
    for p in progress:
        counts = ratios.added(counts, p.ratios)
    by_tensor = sorted(counts.items(), key=lambda item: (item[0].startswith("lse"), item[0]))
    return element(
        "section",
        element("h2", "Error over bound"),
        element(
            "p",
            "Elements of the outputs by how much of its bound each needs, on a scale of factors of 2; heights are square roots "
            "of counts. The first bar stands for all elements below 2⁻²⁰ of their bound, exact ones included. What is compared "
            "bitwise has no bound.",
            class_="note",
        ),
        element("div", *(_histogram(name, bins) for name, bins in by_tensor), class_="histograms"),
    )


def _histogram(name: str, bins: Sequence[int]) -> Element:
    told = _quantiles(bins)
    caption = element("figcaption", element("strong", name), f" {told}")
    return element("figure", caption, svg.histogram(bins, f"histogram of error over bound, {name}: {told}"))


def _quantiles(counts: Sequence[int]) -> str:
    """The number of elements, and the edges below which their 99th percentile and maximum lie."""
    up_to = list(itertools.accumulate(counts))
    highest = (bisect.bisect_left(up_to, share * up_to[-1]) for share in (0.99, 1))
    most, everything = (f"below {ratios.EDGES[i]:.2g}" if i < len(ratios.EDGES) else "at 2 or beyond" for i in highest)
    return f"{up_to[-1]} elements, 99% {most}, the largest {everything}"


def _coverage(run: Run) -> Element:
    counts = sum((Counter(p.features) for p in run.progress), Counter[str]())
    groups: dict[str, list[Element]] = {}
    for feature in FEATURES:
        if (count := counts[feature.name]) or can_have(run.support, feature):
            item = element("li", element("b", str(count)), f" {feature.name}", class_="drawn" if count else "missing")
            groups.setdefault(feature.group, []).append(item)
    lists = (element("div", element("h3", group), element("ul", *items)) for group, items in groups.items())
    return element(
        "section",
        element("h2", "What was drawn"),
        *(element("p", line) for line in (*run.drawn.rejections, *run.not_seen)),
        element("div", *lists, class_="features"),
    )


def _command(*words: str) -> Element:
    """A line for a shell; a click selects it."""
    return element("pre", element("code", shlex.join(words)), class_="command")
