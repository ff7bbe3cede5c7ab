"""The page docs/generated/binaries.md, which is made from the CSV file beside it."""

from collections.abc import Sequence

from attn_binaries.rows import Execution, shown
from attn_lab.binaries.results import Results
from attn_lab.pages import PAGES, table

PAGE = PAGES / "binaries.md"
_PREFACE = """\
# What the compilers make of the kernels

`python -m attn_lab binaries compile --write` compiled them with Triton {triton}, on a machine without a GPU: no figure here
says how fast a kernel is. [binaries.csv](binaries.csv) has a line for each of all {count} binaries: the facts that this page
and the budgets read, and what came of running AMD's on the emulator. `binaries page` writes this page of that file; with
`--check` it says whether the file is of the launches of `binaries/attn_binaries/shipped_calls.toml`, all within their budgets.

Each binary is what Triton's own launcher would compile for the same call. Registers are a lane's (a thread's on NVIDIA); VGPRs
include the AGPRs of CDNA's matrix unit. A spilled register is kept in memory. Waves are the most that a SIMD can hold, as
registers and LDS allow. `lab/attn_lab/binaries/budgets.toml` names the launches that may cost more than others, and says why.
"""
_MAIN = """
## The launches that are compiled on every change

VGPRs, then spilled VGPRs if there are any (+), then waves of a SIMD. Then, of a launch that agrees on the emulator, its largest
error / bound; of another one, what came of it.
"""
_RUN = """
## What the launches compute

`python -m attn_lab binaries run` runs AMD's launches on the emulator. Each is run on two small ragged batches of its own
layer, with fewer heads. Their launches compile to exactly the code of the launch that ships, source lines and labels aside: the
command compares the texts. The fuzzer's judge holds the outputs to its bound, and caches to the reference's, bit by bit. The
largest error / bound of a launch is that of its whole call. A run may be of older code: `of this code` counts the launches that
ran in the code that they have now, by digests of the code. Timing, the order of memory between workgroups, and how matrix units
round are not seen.
"""


def text(results: Results, main: Sequence[str]) -> str:
    """The whole page.

    Args:
        main: the names of the launches that every change compiles.
    """
    lines = _PREFACE.format(triton=results.triton, count=len(results.rows)).splitlines()
    lines += ["", *_summary(results)]
    lines += [*_RUN.splitlines(), "", *_executed(results)]
    return "\n".join([*lines, *_MAIN.splitlines(), "", *_main_launches(results, main)]) + "\n"


def _architectures(results: Results) -> list[str]:
    return list(dict.fromkeys(architecture for architecture, _ in results.rows))


def _summary(results: Results) -> list[str]:
    rows = []
    for architecture in _architectures(results):
        all_facts = [row.facts for row in results.rows.values() if row.architecture == architecture]
        spills = [facts.vgpr_spills or 0 for facts in all_facts]
        lone = sum(facts.waves is not None and facts.waves <= 1 for facts in all_facts)
        rows.append((f"`{architecture}`", len(all_facts), sum(map(bool, spills)), max(spills), lone))
    columns = ("architecture", "launches", "spill VGPRs", "most spilled", "one wave of a SIMD")
    return table(columns, rows, columns[1:])


def _executed(results: Results) -> list[str]:
    """A table of architectures, and a line for each launch that does not agree."""
    rows = []
    for architecture in _architectures(results):
        launches = {job: row for job, row in results.rows.items() if row.architecture == architecture}
        ran = {job: one for job in launches if (one := results.ran.get(job)) is not None and one.verdict != "not run"}
        agree = [one.error for one in ran.values() if one.agrees]
        of_this_code = sum(one.code == launches[job].code for job, one in ran.items())
        counts = (len(launches), len(agree), len(ran) - len(agree), len(launches) - len(ran), of_this_code)
        if architecture.startswith("gfx"):
            rows.append((f"`{architecture}`", *counts, f"{max(agree, default=0):.2g}"))
    columns = ("architecture", "launches", "agree", "do not agree", "not run", "of this code", "largest error / bound")
    wrong = [f"- {line}" for line in results.wrong]
    return [*table(columns, rows, columns[1:]), *([""] if wrong else []), *wrong]


def _main_launches(results: Results, main: Sequence[str]) -> list[str]:
    architectures = _architectures(results)
    rows = [[name, *(_in_short(results, (architecture, name)) for architecture in architectures)] for name in main]
    return table(("launch", *architectures), rows, architectures)


def _in_short(results: Results, job: tuple[str, str]) -> str:
    if job not in results.rows:
        return ""
    facts, ran = results.rows[job].facts, results.ran.get(job)
    spills = f"+{facts.vgpr_spills}" if facts.vgpr_spills else ""
    return f"{shown(facts.vgprs)}{spills}, {shown(facts.waves)}{f'; {_came(ran)}' if ran else ''}"


def _came(execution: Execution) -> str:
    """The largest error / bound of a launch that agrees; else what came of it."""
    return f"{execution.error:.2f}" if execution.agrees else execution.verdict
