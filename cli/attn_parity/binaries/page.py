"""The page docs/generated/binaries.md, which is made from the CSV file of facts beside it and from the budgets."""

from collections.abc import Iterable, Sequence

from attn_parity.binaries.budgets import MOST, Budgets, Exceptions
from attn_parity.binaries.executions import Execution, Executions
from attn_parity.binaries.results import Results, Row

COLUMNS = ("launch", "kernel", "warps", "VGPRs", "AGPRs", "SGPRs", "spills", "LDS", "waves", "matrix", "load")
"""Of a table of binaries; all but the first two hold numbers."""

_PREFACE = """\
# What the compilers make of the kernels

Written by `attn-parity compile --write` with Triton {triton}, on a machine without a GPU: no figure here says how fast a
kernel is. [binaries.csv](binaries.csv) holds the facts of all {count} binaries, and [binaries-run.csv](binaries-run.csv) what
came of running AMD's on the emulator: a line for each launch, and a column for each GPU. `attn-parity compile --check` says
whether this page follows from these files, and whether they are of the launches of
`cli/attn_parity/binaries/shipped_calls.toml`, all within their budgets.

Each binary is what Triton's own launcher would compile for the same call. Registers are a lane's (a thread's on NVIDIA); VGPRs
include the AGPRs of CDNA's matrix unit. A spilled register is kept in memory. Waves are the most that a SIMD can hold, as
registers and LDS allow.
"""
NOT_KNOWN = "not known"
_EXCEPTIONS = """
## Exceptions

Launches that may cost more than the defaults of `cli/attn_parity/binaries/budgets.toml`, which names each.
"""
_WORDS = {"vgpr_spills": "spilled VGPRs", "sgpr_spills_in_loops": "moves of spilled SGPRs in loops", "waves": "waves of a SIMD"}
_MAIN = """
## The launches that are compiled on every change

VGPRs, then spilled VGPRs if there are any (+), then waves of a SIMD. Then, of a launch that agrees on the emulator, its largest
error / bound; of another one, what came of it.
"""
_RUN = """
## What the launches compute

`attn-parity compile --run` runs AMD's launches on the emulator. Each is run on two small ragged batches of its own layer, with
fewer heads. Their launches compile to exactly the code of the launch that ships, source lines and labels aside: the command
compares the texts. The fuzzer's judge holds the outputs to its bound, and caches to the reference's, bit by bit. The largest
error / bound of a launch is that of its whole call. A run may be of older code: `of this code` counts the launches that ran in
the code that they have now, by the digests in both files. It is not known where a binary was compiled before digests were kept.
Timing, the order of memory between workgroups, and how matrix units round are not seen.
"""


def text(results: Results, budgets: Budgets, main: Sequence[str], executions: Executions) -> str:
    """The whole page.

    Args:
        main: the names of the launches that every change compiles.
    """
    lines = _PREFACE.format(triton=results.triton, count=len(results.binaries)).splitlines()
    lines += ["", *_summary(results)]
    exceptions = [exception for exception in budgets.exceptions if results.triton in exception.triton]
    if exceptions:
        columns = ("architecture", "fact", "launches", "worst", "why")
        lines += [*_EXCEPTIONS.splitlines(), "", *table(columns, map(_told, exceptions), words=2)]
    lines += [*_RUN.splitlines(), "", *_executed(results, executions)]
    return "\n".join([*lines, *_MAIN.splitlines(), "", *_main_launches(results, main, executions)]) + "\n"


def cells(row: Row) -> tuple[str, ...]:
    """The cells of a binary, by COLUMNS. Spills are VGPRs and SGPRs, LDS is KiB, load is the bytes of a lane's widest load."""
    facts = row.facts
    spills = "/".join(_shown(spilled) for spilled in (facts.vgpr_spills, facts.sgpr_spills) if spilled is not None)
    registers = (_shown(facts.vgprs), _shown(facts.agprs), _shown(facts.sgprs))
    others = (_shown(facts.waves), _shown(facts.matrix_instructions), _shown(facts.widest_load))
    kernel = row.kernel.removesuffix("_kernel")
    return (row.call, kernel, str(row.num_warps), *registers, spills, f"{facts.lds_bytes / 1024:.3g}", *others)


def table(columns: Sequence[str], rows: Iterable[Iterable[object]], *, words: int) -> list[str]:
    """The lines of a table. Its first columns hold words, and the others hold numbers."""
    rule = ["---"] * words + ["--:"] * (len(columns) - words)
    return [f"| {' | '.join(map(str, row))} |" for row in (columns, rule, *rows)]


def _summary(results: Results) -> list[str]:
    rows = []
    for architecture in dict.fromkeys(row.architecture for row in results.binaries):
        all_facts = [row.facts for row in results.binaries if row.architecture == architecture]
        spills = [facts.vgpr_spills or 0 for facts in all_facts]
        lone = sum(facts.waves is not None and facts.waves <= 1 for facts in all_facts)
        rows.append((f"`{architecture}`", len(all_facts), sum(map(bool, spills)), max(spills), lone))
    columns = ("architecture", "launches", "spill VGPRs", "most spilled", "one wave of a SIMD")
    return table(columns, rows, words=1)


def _told(exception: Exceptions) -> tuple[str, ...]:
    worst = (max if exception.fact in MOST else min)(exception.calls.values())
    return (exception.architecture, _WORDS[exception.fact], str(len(exception.calls)), f"{worst:g}", exception.reason)


def _executed(results: Results, executions: Executions) -> list[str]:
    """A table of architectures, and a line for each launch that does not agree."""
    rows = []
    for architecture in dict.fromkeys(row.architecture for row in results.binaries if row.architecture.startswith("gfx")):
        launches = [row for row in results.binaries if row.architecture == architecture]
        found = {row: executions.found.get((architecture, row.call)) for row in launches}
        ran = [one for one in found.values() if one is not None]
        of_this_code = sum(one is not None and one.code == row.code for row, one in found.items())
        agree = [one.error for one in ran if one.agrees]
        untried = sum(one.verdict == "not run" for one in ran) + len(launches) - len(ran)
        failed = len(launches) - len(agree) - untried
        same = of_this_code if all(row.code for row in launches) else NOT_KNOWN
        rows.append((f"`{architecture}`", len(launches), len(agree), failed, untried, same, f"{max(agree, default=0):.2g}"))
    columns = ("architecture", "launches", "agree", "do not agree", "not run", "of this code", "largest error / bound")
    wrong = [f"- {line}" for line in executions.wrong]
    return [*table(columns, rows, words=1), *([""] if wrong else []), *wrong]


def _main_launches(results: Results, main: Sequence[str], executions: Executions) -> list[str]:
    found = {(row.call, row.architecture): row.facts for row in results.binaries}
    architectures = list(dict.fromkeys(row.architecture for row in results.binaries))
    rows = []
    for name in main:
        facts = {architecture: found[name, architecture] for architecture in architectures if (name, architecture) in found}
        rows.append([name])
        for architecture in architectures:
            one, ran = facts.get(architecture), executions.found.get((architecture, name))
            short = "" if one is None else _in_short(one.vgprs, one.vgpr_spills, one.waves)
            rows[-1].append(f"{short}; {told(ran)}" if ran else short)
    return table(("launch", *architectures), rows, words=1)


def told(execution: Execution | None) -> str:
    """The largest error / bound of a launch that agrees; else what came of it."""
    if execution is None:
        return ""
    return f"{execution.error:.2f}" if execution.agrees else execution.verdict


def _in_short(vgprs: int | None, spills: int | None, waves: float | None) -> str:
    return f"{_shown(vgprs)}{f'+{spills}' if spills else ''}, {_shown(waves)}"


def _shown(figure: float | None) -> str:
    return "" if figure is None else f"{figure:g}"
