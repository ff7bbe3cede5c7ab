"""docs/generated/releases.md: which fixes of others the fuzzer shows, and from which release to which each finding is there."""

from collections.abc import Iterator, Mapping, Sequence

from attn_lab.findings import scripts
from attn_lab.findings.places import package_of
from attn_lab.pages import table
from attn_lab.releases import alarms, runner
from attn_lab.releases.alarms import Summary
from attn_lab.releases.runner import Fix, Results, Run

PAGE = runner.RESULTS.with_suffix(".md")
_INTRODUCTION = """# Releases of others: fixes that nobody here chose

{count} fixes of attention in Triton and Python files of vLLM, SGLang, LMDeploy and AITER. They were read off the differences
between consecutive releases before any of them was run: `lab/attn_lab/releases/fixes.toml` has the rule. {loaded} are in files
that a target of ours loads. Of these, **{shown} are shown**: an example of the target's general draw (seed {seed}) fails on the
release before the fix, agrees on the release that has it, and somebody looked at it to see that it is this fix. That is
{of_loaded} of those loaded, and {of_all} of all. {far} of them are shown by the mode `@far` alone, which moves addresses beyond
32 bits, and in which few targets ran. Each example ran on a CPU: interpreted, or emulated for the architecture after the `@`.
"After 30 of draw 4f99" is the example's place in a draw, and the draw's digest: the fuzzer changed between some of the runs,
and draws others now. Two runs of one draw show a fix, and no others.
For the fixes that the first examples do not show, those of the first {most} ran that can show them by their metadata, such as
those with a window. Where a fix is not shown, the cell says how many examples ran.

`python -m attn_lab releases fixes --sources FOLDER --examples {most}` goes on from here. FOLDER has a folder PACKAGE-RELEASE
for each release that is to run, such as `vllm-0.24.0/vllm`. `--example N` runs one further example. `releases findings` runs
the scripts of findings, and `releases page` writes this page.
"""


def shown(fix: Fix, kept: Results) -> bool:
    """True if the example that was looked at fails on the release before a fix, and agrees on the release that has it."""
    return fix.shown_by is not None and fix.shown_by[1] in changed(fix, fix.shown_by[0], kept)


def changed(fix: Fix, target: str, kept: Results) -> list[int]:
    """The examples of a target that fail on the release before a fix, and that ran and agree on the release that has it.

    None of runs whose draws differ: there one number is two examples.
    """
    earlier, later = _around(fix, target, kept)
    if earlier is None or later is None or earlier.error or earlier.draw != later.draw:
        return []
    return list(filter(later.agrees, sorted(earlier.failed)))


def _around(fix: Fix, target: str, kept: Results) -> tuple[Run | None, Run | None]:
    runs, earlier = kept.runs.get(target, {}), runner.before(kept.releases[fix.package], fix.release)
    return runs.get(earlier or ""), runs.get(fix.release)


def _state(fix: Fix, kept: Results) -> Iterator[str]:
    if not fix.targets:
        yield "no target loads the file"
    elif fix.shown_by is not None and shown(fix, kept):
        earlier, _ = _around(fix, fix.shown_by[0], kept)
        assert earlier is not None
        yield f"**shown** by `{fix.shown_by[0]}` after {fix.shown_by[1] + 1}{_of_draw(earlier)}"
    else:
        for target in fix.tried:
            earlier, _ = _around(fix, target, kept)
            if earlier is None:
                continue
            ran = f"not in {earlier.count}{_of_draw(earlier)}"
            others = len(changed(fix, target, kept))
            failing = f", and {others} that change are not known to be this fix" if others else ""
            yield f"`{target}` {f'does not load: {earlier.error}' if earlier.error else ran + failing}"


def _of_draw(run: Run) -> str:
    return f" of draw {run.draw[:4]}" if run.draw else ""


def page(kept: Results) -> str:
    fixes = runner.fixes()
    loaded, found = [fix for fix in fixes if fix.targets], [fix for fix in fixes if shown(fix, kept)]
    lines = [
        _INTRODUCTION.format(
            count=len(fixes),
            loaded=len(loaded),
            shown=len(found),
            far=sum(fix.shown_by is not None and "@far" in fix.shown_by[0] for fix in found),
            seed=kept.seed,
            of_loaded=f"{len(found) / len(loaded):.0%}",
            of_all=f"{len(found) / len(fixes):.0%}",
            most=runner.MAX_EXAMPLES,
        )
    ]
    rows = [
        (
            f"{fix.package} {fix.release}",
            fix.what,
            fix.file,
            f"#{fix.pull}" if fix.pull else "not found",
            "; ".join(_state(fix, kept)) or "not run",
            fix.why,
        )
        for fix in fixes
    ]
    lines += table(("fixed in", "wrong before", "file", "pull request", "examples", "why"), rows)
    lines += ["", *_alarms(), "## Findings", "", _FINDINGS, ""]
    lines += table(
        ("finding", "first release with it", "last release with it", "ran on"),
        ((name, *span(codes, kept.releases[package_of(name)])) for name, codes in sorted(kept.findings.items()) if codes),
    )
    return "\n".join(lines) + "\n"


_ALARMS = """## False alarms

Each interpreted target draws by what it declares of a release, and runs there. A failure is a known finding's, or a defect
that a later release has not, as somebody read who compared the two: `lab/attn_lab/releases/alarms.toml` says which release.
Of a seed other than {mended_on} the same case also ran there, and agreed, or failed by a known finding. Or it is a false
alarm, or nobody has read it. Left out is what a limit of a tool kept from running, and what an adapter does not fit. A first
count, of seed {mended_on}, had some 700 false alarms, of targets that did not fit older releases. They read more of their
sources since, and the row of seed {mended_on} counts the same cases after that. The other rows are of seeds that nobody had
looked at before, each drawn after the false alarms of the row above were mended: they stay as they were first counted.
`python -m attn_lab releases alarms FILE --sources FOLDER --seed N --examples 25` counts; FILE holds each failure.
"""


def _alarms() -> Iterator[str]:
    summaries = alarms.summaries()
    if not summaries:
        return
    yield _ALARMS.format(mended_on=alarms.SEEDS[0])
    heads = ("seed", "targets", "a target on a release", "cases", "left out", "known findings", "mended later")
    yield from table((*heads, "false alarms", "not read"), map(_row, summaries.values(), summaries))
    yield ""
    for each in (entry for entry in alarms.entries() if entry.what == alarms.FALSE_ALARM):
        yield f"False alarms of {', '.join(f'`{name}`' for name in each.targets)} before {each.before}: {each.why}."
        yield ""


def _row(found: Mapping[str, Summary], seed: int) -> tuple[object, ...]:
    def told(what: str) -> str:
        of = {name: number for name, each in found.items() if (number := each.alarms.get(what))}
        names = ", ".join(f"`{name}` {number}" for name, number in of.items()) if what != alarms.MENDED else ""
        return f"{sum(of.values())}{f' ({names})' if names else ''}"

    sums = (sum(getattr(each, field) for each in found.values()) for field in ("releases", "cases", "left_out", "known"))
    return (seed, len(found), *sums, *map(told, alarms.WHAT))


_FINDINGS = """The script of each finding ran on the oldest and the newest release, and between two that differ. "Or before":
the oldest release has it. "Cannot run": the release lacks the function, or the script does not fit."""


def span(codes: Mapping[str, int], known: Sequence[str]) -> tuple[str, str, str]:
    having = [release for release in known if codes.get(release) == scripts.SHOWS]
    cannot = [release for release in known if codes.get(release) == scripts.CANNOT_RUN]
    ran = ", ".join(release for release in known if release in codes)
    if not having:
        return "none that ran shows it", f"cannot run: {', '.join(cannot)}" if cannot else "", ran
    first, earlier = having[0], [release for release in known[: known.index(having[0])] if release in codes]
    if not earlier:
        first += " or before"
    elif codes[earlier[-1]] == scripts.CANNOT_RUN:
        first += f" or before: {earlier[-1]} cannot run"
    return first, having[-1] + (" (the newest)" if having[-1] == known[-1] else ""), ran
