"""What a candidate's binaries say of it."""

import re
from typing import NamedTuple

from attn_optimized.kernel_call import KernelCall
from attn_optimized.launch_table import Parameters

_MULTIPLIES = (re.compile(r"v_(?:s?mfma|s?wmma)"), re.compile(r"v_(?:pk_|dual_)?fmac?_f32"))
_LABEL, _BRANCH = re.compile(r"^(\.?[A-Za-z_$][\w$.]*):"), re.compile(r"^\s+s_c?branch\w*\s+(\S+)")
_INSTRUCTION = re.compile(r"^\s+[a-z]+_\w+")


class Facts(NamedTuple):
    """Of a candidate's binaries, the worst of each."""

    spills: int
    matrix_instructions: int
    shared_bytes: int
    shared_limit: int
    waves: int | None
    """Per SIMD; None where the compiler does not say."""
    instructions: float | None
    """Per pair of row and key; None without a loop, or for NVIDIA."""

    @classmethod
    def worst(cls, found: list["Facts"]) -> "Facts":
        waves = [facts.waves for facts in found if facts.waves is not None]
        instructions = [facts.instructions for facts in found if facts.instructions is not None]
        return cls(
            spills=max(facts.spills for facts in found),
            matrix_instructions=min(facts.matrix_instructions for facts in found),
            shared_bytes=max(facts.shared_bytes for facts in found),
            shared_limit=min(facts.shared_limit for facts in found),
            waves=min(waves, default=None),
            instructions=max(instructions, default=None),
        )

    def __str__(self) -> str:
        parts = [f"{self.spills or 'no'} spills", f"{self.matrix_instructions or 'no'} matrix instructions"]
        if self.waves is not None:
            parts.append(f"{self.waves} waves per SIMD")
        if self.instructions is not None:
            parts.append(f"{self.instructions:.3f} instructions per row and key")
        return ", ".join(parts)


def facts_of(call: KernelCall, parameters: Parameters, architecture: str) -> Facts:
    """Compile an attention kernel's launch, and look at its binary."""
    raise NotImplementedError


def instructions_per_pair(assembly: str, parameters: Parameters, block_m: int) -> float | None:
    """Of all waves of a program."""
    loop = loop_instructions(assembly)
    return None if loop is None else loop * parameters.num_warps / (block_m * parameters.block_n)


def loop_instructions(assembly: str) -> int | None:
    """Instructions of the loop over tiles that need no mask: the shortest with a good part of the kernel's multiplications."""
    lines = assembly.splitlines()
    multiply = next((kind for kind in _MULTIPLIES if kind.search(assembly)), None)
    if multiply is None:
        return None
    labels: dict[str, int] = {}
    loops: list[list[str]] = []
    for i, line in enumerate(lines):
        if label := _LABEL.match(line):
            labels[label[1]] = i
        elif (branch := _BRANCH.match(line)) and branch[1] in labels:
            loops.append([line for line in lines[labels[branch[1]] : i + 1] if _INSTRUCTION.match(line)])
    # the loops over tiles with and without a mask have about half each
    enough = len(multiply.findall(assembly)) / 4
    return min((len(loop) for loop in loops if sum(map(_count(multiply), loop)) >= enough), default=None)


def _count(multiply: re.Pattern[str]):
    return lambda line: multiply.search(line) is not None
