"""Facts of a candidate's binaries."""

import re
from typing import NamedTuple

from attn_optimized.kernel_call import KernelCall
from attn_parity.binaries.architectures import ARCHITECTURES
from attn_parity.binaries.compilation import compiled
from attn_parity.binaries.facts import facts_of as read_off

from benchmarks.peers.loops import bounds_of, hot_loop, innermost_loops, pipeline_of
from benchmarks.peers.rates import RATED, UnknownRateError

_MULTIPLIES = (re.compile(r"v_(?:s?mfma|s?wmma)"), re.compile(r"v_(?:pk_|dual_)?fmac?_f32"))


class Facts(NamedTuple):
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
    """The fewest cycles of a SIMD for a pair of row and key, by AMD's published rates (`benchmarks.peers`). Only for RATED."""
    ahead: float | None = None
    """The distance by which the hot loop loads ahead of its computation (`benchmarks.peers.loops.Pipeline`). Only AMD's code
    has the figure."""
    barriers: float | None = None
    """Barriers of one iteration of the hot loop, per pair of row and key. Only AMD's code has the count."""

    @classmethod
    def worst(cls, found: list["Facts"]) -> "Facts":
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


def facts_of(call: KernelCall, architecture: str) -> Facts | None:
    """Compile a launch, and look at its binary if it is one of the attention kernel."""
    binary, _ = compiled(call, architecture)
    kind = call.launch.constants.get("KIND")
    if kind is None:
        return None
    pairs = kind.block_m * kind.block_n
    assembly, num_warps = binary.asm.get("amdgcn", ""), call.launch.options["num_warps"]
    instructions = instructions_per_pair(assembly, num_warps, pairs)
    if architecture not in ARCHITECTURES:
        return Facts(shared_bytes=binary.metadata.shared, instructions=instructions)
    facts = read_off(binary, architecture)
    turn = cycles_per_turn(assembly, facts.waves) if architecture in RATED else None
    pipeline = pipeline_of(assembly)
    return Facts(
        spills=facts.vgpr_spills,
        matrix_instructions=facts.matrix_instructions,
        shared_bytes=facts.lds_bytes,
        shared_limit=facts.lds_limit,
        waves=facts.waves,
        instructions=instructions,
        cycles=None if turn is None else turn * num_warps / pairs,
        ahead=None if pipeline is None else pipeline.ahead,
        barriers=None if pipeline is None else pipeline.barriers / pairs,
    )


def cycles_per_turn(assembly: str, waves: float | None) -> float | None:
    """Cycles of a SIMD for a turn of the hot loop of one wave; None without such a loop, or without published rates for it."""
    try:
        turn = hot_loop(assembly)
    except UnknownRateError:
        return None
    return None if turn is None or not waves else bounds_of(turn, waves).cycles


def instructions_per_pair(assembly: str, num_warps: int, pairs: int) -> float | None:
    """Instructions of all waves of a program for a pair of row and key of a tile; None: there is no loop."""
    loop = loop_instructions(assembly)
    return None if loop is None else loop * num_warps / pairs


def loop_instructions(assembly: str) -> int | None:
    """Instructions of the loop over tiles without a mask: the shortest of the loops that multiply most."""
    multiply = next((kind for kind in _MULTIPLIES if kind.search(assembly)), None)
    if multiply is None:
        return None
    loops = innermost_loops(assembly)
    counts = [sum(multiply.match(name) is not None for name in loop) for loop in loops]
    most = max(counts, default=0)
    return min((len(loop) for loop, count in zip(loops, counts, strict=True) if count == most), default=None) if most else None
