"""Facts of a candidate's binaries."""

from typing import NamedTuple

from attn_binaries.architectures import ARCHITECTURES
from attn_binaries.compilation import compiled
from attn_binaries.facts import facts_of as facts_of_binary
from attn_optimized.kernel_call import KernelCall

from benchmarks.assembly.loops import HotLoop, bounds_of, hot_loop
from benchmarks.assembly.rates import RATED, UnknownRateError


class WorstFacts(NamedTuple):
    """The worst fact of each kind among a candidate's binaries; None: not known."""

    spills: int | None = None
    """Vector registers that are kept in memory."""
    matrix_instructions: int | None = None
    shared_bytes: int | None = None
    shared_limit: int | None = None
    waves: float | None = None
    """The waves of a SIMD that registers and shared memory allow."""
    instructions: float | None = None
    """Instructions per pair of row and key. Only AMD's code has the count."""
    cycles: float | None = None
    """The fewest cycles of a SIMD for a pair of row and key, by AMD's published rates (`assembly.rates`). Only for RATED."""
    ahead: float | None = None
    """The distance by which the hot loop loads ahead of its computation (`benchmarks.assembly.loops.Pipeline`). Only AMD's code
    has the figure."""
    barriers: float | None = None
    """Barriers of one iteration of the hot loop, per pair of row and key. Only AMD's code has the count."""

    @classmethod
    def worst(cls, found: list["WorstFacts"]) -> "WorstFacts":
        spills, matrix_instructions, shared_bytes, shared_limits, waves, instructions, cycles, ahead, barriers = (
            [value for value in values if value is not None] for values in zip(*found, strict=True)
        )
        return cls(
            spills=max(spills, default=None),
            matrix_instructions=min(matrix_instructions, default=None),
            shared_bytes=max(shared_bytes, default=None),
            shared_limit=min(shared_limits, default=None),
            waves=min(waves, default=None),
            instructions=max(instructions, default=None),
            cycles=max(cycles, default=None),
            ahead=min(ahead, default=None),
            barriers=max(barriers, default=None),
        )

    def __str__(self) -> str:
        named = (
            (self.spills, f"{self.spills or 'no'} spills"),
            (self.matrix_instructions, f"{self.matrix_instructions or 'no'} matrix instructions"),
            (self.waves, f"{self.waves or 0:g} waves per SIMD"),
            (self.instructions, f"{self.instructions or 0:.3f} instructions per row and key"),
            (self.cycles, f"{self.cycles or 0:.3f} cycles"),
            (self.ahead, f"loads {self.ahead or 0:.2f} turns ahead"),
            (self.barriers, f"{1024 * (self.barriers or 0):.2f} barriers per 1024 of these pairs"),
        )
        return ", ".join(text for value, text in named if value is not None)


def facts_of(call: KernelCall, architecture: str) -> WorstFacts | None:
    """Compile a launch, and look at its binary if it is one of the attention kernel."""
    binary, _ = compiled(call, architecture)
    kind = call.launch.constants.get("KIND")
    if kind is None:
        return None
    loop = hot_loop(binary.asm.get("amdgcn", ""))
    waves_per_pair = call.launch.options["num_warps"] / (kind.block_m * kind.block_n)
    instructions = None if loop is None else len(loop.instructions) * waves_per_pair
    if architecture not in ARCHITECTURES:
        return WorstFacts(shared_bytes=binary.metadata.shared, instructions=instructions)
    facts = facts_of_binary(binary, architecture)
    turn = cycles_per_turn(loop, facts.waves) if architecture in RATED else None
    pipeline = None if loop is None else loop.pipeline
    return WorstFacts(
        spills=facts.vgpr_spills,
        matrix_instructions=facts.matrix_instructions,
        shared_bytes=facts.lds_bytes,
        shared_limit=facts.lds_limit,
        waves=facts.waves,
        instructions=instructions,
        cycles=None if turn is None else turn * waves_per_pair,
        ahead=None if pipeline is None else pipeline.ahead,
        barriers=None if pipeline is None else pipeline.barriers / (kind.block_m * kind.block_n),
    )


def cycles_per_turn(loop: HotLoop | None, waves: float | None) -> float | None:
    """Cycles of a SIMD for a turn of one wave; None without matrix instructions, or without published rates for the loop."""
    if loop is None or not loop.matrix or not waves:
        return None
    try:
        return bounds_of(loop.cost, waves).cycles
    except UnknownRateError:
        return None
