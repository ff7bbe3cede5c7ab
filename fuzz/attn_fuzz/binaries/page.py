"""The page of the binaries, docs/generated/binaries.md, made of the facts beside it and nothing else."""

from collections.abc import Mapping, Sequence

import msgspec
from attn_fuzz.binaries.budgets import BudgetError

SCHEMA = "attn-parity.compile/1"
COLUMNS = ("launch", "kernel", "warps", "VGPRs", "AGPRs", "SGPRs", "spills", "LDS", "waves", "matrix", "load")


class Row(msgspec.Struct, frozen=True):
    """One binary: a launch on an architecture, its kernel, its waves, and `attn_optimized.compilation.Facts`."""

    architecture: str
    call: str
    kernel: str
    num_warps: int
    facts: dict[str, float | None]


class Results(msgspec.Struct, frozen=True, tag_field="schema", tag=SCHEMA):
    """What was compiled with a version of Triton, what is over budget, and what does not compile."""

    triton: str
    binaries: tuple[Row, ...]
    over: tuple[str, ...] = ()
    errors: tuple[str, ...] = ()


def loads(text: bytes, name: str) -> Results:
    """Read results back.

    Raises:
        BudgetError: they are none, or of another schema.
    """
    try:
        return msgspec.json.decode(text, type=Results)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise BudgetError(f"{name}: {error}") from None


def differences(results: Results, names: Mapping[str, Sequence[str]]) -> list[str]:
    """Launches without facts, and facts without a launch.

    Args:
        names: every launch, by architecture.
    """
    kept = {(row.architecture, row.call) for row in results.binaries}
    wanted = {(architecture, name) for architecture, calls in names.items() for name in calls}
    wrong = [f"{architecture} {name}: a launch without facts" for architecture, name in sorted(wanted - kept)]
    return wrong + [f"{architecture} {name}: facts without a launch" for architecture, name in sorted(kept - wanted)]


PREFACE = """\
# What the compilers make of the kernels

Written by `attn-parity compile --write` with Triton {triton}, on a machine without a GPU; the facts are kept in binaries.json.
`attn-parity compile --check` says whether this page is what they say, and whether they are of the launches that there are
(`optimized/attn_optimized/shipped_calls.py`). Triton's own launcher would compile the same for the same call: for a GPU that
is not here, the backend's own functions say what it knows of each argument.

What is allowed, and why some launches may cost more, is in `fuzz/attn_fuzz/binaries/budgets.toml`. None of this says how fast a
kernel is: nothing was run.

Registers are those of a lane, or of a wave for SGPRs; VGPRs include AGPRs, which CDNA has for its matrix unit. On NVIDIA they
are a thread's. Spills are VGPRs and SGPRs that the compiler keeps elsewhere (7/26), on NVIDIA words of a thread's stack. Waves
are what a SIMD can hold, as registers and LDS allow. LDS is in KiB, matrix the number of matrix instructions, load the bytes of
the widest load of a lane; an empty cell is what is not known, or what the architecture has not.
"""


def text(results: Results) -> str:
    """docs/generated/binaries.md, whole."""
    lines = PREFACE.format(triton=results.triton).splitlines()
    architectures = dict.fromkeys(row.architecture for row in results.binaries)
    lines += ["", _line("architecture", "launches", "spill vector registers", "most", "one wave of a SIMD")]
    lines += [_line("---", "--:", "--:", "--:", "--:")]
    for architecture in architectures:
        rows = [row for row in results.binaries if row.architecture == architecture]
        spills = [row.facts["vgpr_spills"] or 0 for row in rows]
        few = sum(waves is not None and waves <= 1 for waves in (row.facts["waves"] for row in rows))
        lines.append(_line(f"`{architecture}`", len(rows), sum(map(bool, spills)), f"{max(spills):g}", few))
    for architecture in architectures:
        lines += ["", f"## {architecture}", "", _line(*COLUMNS), _line("---", "---", *["--:"] * (len(COLUMNS) - 2))]
        lines += [_line(*cells(row)) for row in results.binaries if row.architecture == architecture]
    return "\n".join(lines) + "\n"


def cells(row: Row) -> tuple[str, ...]:
    """What COLUMNS say of a binary."""
    facts = row.facts
    registers = [_shown(facts[name]) for name in ("vgprs", "agprs", "sgprs")]
    spills = "/".join(_shown(facts[name]) for name in ("vgpr_spills", "sgpr_spills") if facts[name] is not None)
    lds = f"{(facts['lds_bytes'] or 0) / 1024:.3g}"
    others = [_shown(facts[name]) for name in ("waves", "matrix_instructions", "widest_load")]
    return (row.call, row.kernel.removesuffix("_kernel"), str(row.num_warps), *registers, spills, lds, *others)


def _shown(figure: float | None) -> str:
    return "" if figure is None else f"{figure:g}"


def _line(*cells: object) -> str:
    return f"| {' | '.join(map(str, cells))} |"
