"""Budgets of the registers and waves of a binary (budgets.toml): defaults for all launches, and exceptions with reasons."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import msgspec
from attn_binaries.facts import Facts
from attn_fuzz import inputs

if TYPE_CHECKING:
    from attn_optimized.kernel_call import KernelCall

Fact = Literal["vgpr_spills", "sgpr_spills_in_loops", "waves"]
"""Facts with a budget: the most spilled registers and moves of spilled scalars in loops, and the fewest waves of a SIMD."""
BOUNDED_ABOVE: tuple[Fact, ...] = ("vgpr_spills", "sgpr_spills_in_loops")
"""The facts that a budget bounds from above."""


ONE_SPILL_IN = 50
"""Spills may be above a budget by one in this many. LLVM orders the terms of some sums by their addresses in the compiler's own
memory, so one launch has other code in another run of the compiler: of 36 runs, 20 spilled 515 registers, 15 spilled 516 and
one 517; another launch spilled 275 or 279. A budget below 50 allows none more."""

SHIPPED = Path(__file__).with_name("budgets.toml")


class Exceptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Another budget for some launches on an architecture.

    Args:
        fact: the fact that has a budget, a field of `Facts`.
        figure: the budget: what the worst of the launches comes to.
        reason: why the launches need the exception.
        calls: the names of the launches.
        triton: the releases of Triton that have the exception; all if none is named.
    """

    architecture: str
    fact: Fact
    figure: float
    reason: str
    calls: tuple[str, ...]
    triton: tuple[str, ...] = ()

    def is_of(self, fact: Fact, architecture: str, name: str, triton: str) -> bool:
        """True if it is of this fact of a launch with a release of Triton."""
        of_launch = (self.architecture, self.fact) == (architecture, fact) and name in self.calls
        return of_launch and (not self.triton or triton in self.triton)


class Budgets(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The default budgets, and the exceptions.

    Args:
        vgpr_spills, sgpr_spills_in_loops: the largest figures of a launch without an exception.
        waves: the smallest number of waves per SIMD of a launch without an exception, by architecture.
        exceptions: if several exceptions name a launch, the first one counts.
    """

    vgpr_spills: float
    sgpr_spills_in_loops: float
    waves: dict[str, float]
    exceptions: tuple[Exceptions, ...] = ()

    def allowed(self, fact: Fact, architecture: str, name: str, triton: str) -> float:
        """The budgets of a launch with a version of Triton."""
        figure = getattr(self, fact) if fact in BOUNDED_ABOVE else self.waves.get(architecture, 0)
        figures = (one.figure for one in self.exceptions if one.is_of(fact, architecture, name, triton))
        return next(figures, figure)


def load() -> Budgets:
    """The project's budgets.

    Raises:
        InputError: the file has other entries than Budgets.
    """
    return inputs.read_toml_as(SHIPPED, Budgets)


def over(budgets: Budgets, architecture: str, name: str, call: "KernelCall", facts: Facts, triton: str) -> list[str]:
    """Every fact of a binary that is over its budget: the fact's name, its figure and the budget."""

    def allowed(fact: Fact) -> float:
        return budgets.allowed(fact, architecture, name, triton)

    wrong = []
    for fact in BOUNDED_ABOVE:
        spills, most = getattr(facts, fact) or 0, allowed(fact)
        if (spills - most) * ONE_SPILL_IN > most:
            wrong.append(f"{fact} is {spills}, at most {most + most // ONE_SPILL_IN:g} allowed")
    wrong += facts.faults
    if facts.waves is not None and facts.waves < (least := allowed("waves")):
        wrong.append(f"waves is {facts.waves:g}, at least {least:g} wanted")
    if facts.tf32_instructions:
        wrong.append(f"tf32_instructions is {facts.tf32_instructions}, none allowed: float32 would lose 13 bits")
    if facts.narrow_products:
        wrong.append(f"narrow_products is {facts.narrow_products}, none allowed: a large cache overflows its offsets")
    if needs_matrix_unit(call, architecture) and not facts.matrix_instructions:
        wrong.append("matrix_instructions is 0, some wanted: the dots are computed without the matrix unit")
    if rounds_products(call) and facts.fused_multiply_adds:
        wrong.append(f"fused_multiply_adds is {facts.fused_multiply_adds}, none allowed: a rotation rounds each product")
    return wrong


def needs_matrix_unit(call: "KernelCall", architecture: str) -> bool:
    """True if a launch has dots for which the architecture has matrix instructions: 16-bit dots, and float32 dots on CDNA."""
    from attn_optimized.kernels.attention import attention_kernel  # imports Triton
    from attn_optimized.kernels.index_logits import index_logits_kernel
    from attn_optimized.kernels.warp_specialized import warp_specialized_kernel

    q: Any = call.tensors.get("q_ptr")
    has_dots = call.launch.kernel in (attention_kernel, index_logits_kernel, warp_specialized_kernel)
    return has_dots and (q.element_size() == 2 or architecture.startswith("gfx9"))


def rounds_products(call: "KernelCall") -> bool:
    """True if a launch rotates queries and keys without dividing by a scale."""
    from attn_optimized.kernels.write_kv_cache import write_kv_cache_kernel

    if call.launch.kernel is not write_kv_cache_kernel:
        return False
    kind = call.launch.constants["KIND"]
    return kind.rotary_dim > 0 and kind.kv_format == "float"
