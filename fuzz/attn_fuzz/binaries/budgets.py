"""What a binary may cost: defaults for all, and exceptions by name, each with its reason, in budgets.toml."""

import math
import tomllib
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import msgspec
from attn_fuzz.errors import InputError

if TYPE_CHECKING:
    from attn_optimized.compilation import Facts
    from attn_optimized.kernel_call import KernelCall

Fact = Literal["vgpr_spills", "waves"]
"""What has exceptions: the most spilled registers, and the fewest waves of a SIMD."""


class BudgetError(InputError):
    """The file of the budgets is none."""


class Exceptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What some calls may cost.

    Attributes:
        architecture: theirs.
        fact: which one.
        triton: the beginning of the version that needs it.
        reason: why.
        calls: what is allowed, by the name of the launch.
    """

    architecture: str
    fact: Fact
    triton: str
    reason: str
    calls: dict[str, float]


class Budgets(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """All of it.

    Attributes:
        vgpr_spills: at most, by default; nobody may have other spills than an exception says.
        waves: of a SIMD at least, by architecture.
        exceptions: the later one counts.
    """

    vgpr_spills: int
    waves: dict[str, float]
    exceptions: tuple[Exceptions, ...] = ()

    def knows(self, triton: str) -> bool:
        """Whether exceptions are of this version of Triton."""
        return any(triton.startswith(exception.triton) for exception in self.exceptions)

    def allowed(self, fact: Fact, architecture: str, name: str, triton: str) -> float:
        """What a launch may cost with a version of Triton."""
        figure = self.vgpr_spills if fact == "vgpr_spills" else self.waves.get(architecture, 0)
        for exception in self.exceptions:
            if (exception.architecture, exception.fact) == (architecture, fact) and triton.startswith(exception.triton):
                figure = exception.calls.get(name, figure)
        return figure


def load(path: Path | None = None) -> Budgets:
    """Read a file; None: the project's own.

    Raises:
        BudgetError: it is no such file, or limits nothing where it seems to.
    """
    from attn_optimized.compilation import ARCHITECTURES  # imports Triton

    source = path or files("attn_fuzz.binaries") / "budgets.toml"
    try:
        budgets = msgspec.convert(tomllib.loads(source.read_text(encoding="utf-8")), Budgets)
    except (msgspec.ValidationError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise BudgetError(f"{source}: {error}") from None
    for name in (*budgets.waves, *(exception.architecture for exception in budgets.exceptions)):
        if name not in ARCHITECTURES:
            raise BudgetError(f"{source}: architecture {name!r} is none of {', '.join(ARCHITECTURES)}")
    figures = [("waves", budgets.waves), *((exception.reason, exception.calls) for exception in budgets.exceptions)]
    for table, name in ((table, name) for table, by_name in figures for name, figure in by_name.items() if math.isnan(figure)):
        raise BudgetError(f"{source}: {table}: {name!r} is NaN, which no figure is above or below")
    return budgets


def over(budgets: Budgets, architecture: str, name: str, call: "KernelCall", facts: "Facts", triton: str) -> list[str]:
    """What a binary costs beyond its budget: which fact, what it is and what was allowed."""

    def allowed(fact: Fact) -> float:
        return budgets.allowed(fact, architecture, name, triton)

    wrong = []
    if (facts.vgpr_spills or 0) > (most := allowed("vgpr_spills")):
        wrong.append(f"vgpr_spills is {facts.vgpr_spills}, at most {most:g} allowed")
    if facts.waves is not None and facts.waves < (least := allowed("waves")):
        wrong.append(f"waves is {facts.waves:g}, at least {least:g} wanted")
    if facts.lds_bytes > facts.lds_limit:
        wrong.append(f"lds_bytes is {facts.lds_bytes}, at most {facts.lds_limit} there")
    if facts.tf32_instructions:
        wrong.append(f"tf32_instructions is {facts.tf32_instructions}, none allowed: float32 would lose 13 bits")
    if facts.narrow_products:
        wrong.append(f"narrow_products is {facts.narrow_products}, none allowed: a large cache overflows its offsets")
    if needs_matrix_unit(call, architecture) and not facts.matrix_instructions:
        wrong.append("matrix_instructions is 0, some wanted: the dots are computed without the matrix unit")
    if rounds_products(call) and facts.fused_multiply_adds:
        wrong.append(f"fused_multiply_adds is {facts.fused_multiply_adds}, none allowed: a rotation rounds each product")
    return wrong


def unneeded(
    budgets: Budgets, facts: "Mapping[tuple[str, str], Facts]", names: Mapping[str, Sequence[str]], triton: str
) -> list[str]:
    """Exceptions that allow more than a binary costs, and those of launches that an architecture has not.

    Args:
        facts: by architecture and name; exceptions of others are not judged.
        names: every launch, by architecture.
    """
    found = []
    for exception in budgets.exceptions:
        if not triton.startswith(exception.triton):
            continue
        for name, figure in exception.calls.items():
            key = exception.architecture, name
            if exception.architecture in names and name not in names[exception.architecture]:
                found.append(f"{exception.architecture} {name}: there is no such launch")
            elif key in facts and (actual := getattr(facts[key], exception.fact)) != figure:
                found.append(f"{exception.architecture} {name}: {exception.fact} is {actual:g}, and {figure:g} is allowed")
    return found


def needs_matrix_unit(call: "KernelCall", architecture: str) -> bool:
    """Whether it computes dots for which the architecture has instructions: of 16 bits everywhere, of float32 on CDNA."""
    q: Any = call.tensors.get("q_ptr")
    return "KIND" in call.form.constants and (q.element_size() == 2 or architecture.startswith("gfx9"))


def rounds_products(call: "KernelCall") -> bool:
    """Whether it rotates, and divides by no scale."""
    return bool(call.form.constants.get("ROTARY_DIM")) and call.form.constants["FORMAT"] == "float"
