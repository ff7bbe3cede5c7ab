"""Statements about another project's kernel: which keys vLLM's Triton `unified_attention` shows, and which tiles it goes
through.

    python -m attn_proofs.vllm_unified_attention

They are about two functions of vLLM's `triton_attention_helpers`: `compute_kv_seq_mask`, the mask of a tile, and
`compute_tile_loop_bounds`, the tiles and keys that are gone through. Both are read from the installed vLLM, and no code of
vLLM is imported or run. The kernel hides a row of q that is not there. It loads a key if it lies before
`max_seq_prefix_len`, which its mask does not ask for. So a key that is shown and not loaded counts as one of zeros.
"""

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import z3
from attn_proofs.extract import Extraction
from attn_proofs.sources import Sources
from attn_proofs.theorem import Claim, Term, decide
from attn_proofs.values import Pointer, Tensor, as_tensor, integers, memory, number

HELPERS = "vllm.v1.attention.ops.triton_attention_helpers"
TILE, BLOCK_M, GROUP = 16, 16, 2
MAX_LENGTH = 2**30
"""Lengths and positions: sums of two fit 32 bits."""
Causality = Literal["causal", "not causal", "per request"]


@dataclass(frozen=True)
class Mask:
    """The constants for which the kernel is compiled.

    Attributes:
        causality: of the launch; per request, the kernel reads a flag.
        window: SLIDING_WINDOW, a number of tokens with the query's own; 0: none.
        ranges: MAX_MM_RANGES, ranges of positions of each request; (0, 0) is none.
        clamped: True if the window clamps the ranges.
        chunk: CHUNK_LOOKBACK and CHUNK_SIZE, which take the place of the window.
    """

    causality: Causality = "causal"
    window: int = 0
    ranges: int = 0
    clamped: bool = False
    chunk: tuple[int, int] = (-1, -1)

    def __str__(self) -> str:
        words = [self.causality, f"window {self.window}" * bool(self.window), f"{self.ranges} ranges" * bool(self.ranges)]
        words += ["clamped" * self.clamped, f"chunks of {self.chunk[1]}" * (self.chunk[1] > 0)]
        return ", ".join(filter(None, words))

    @property
    def constants(self) -> dict[str, int | bool]:
        """The constants as both functions take them."""
        return {
            "SLIDING_WINDOW": self.window,
            "USE_MM_PREFIX": self.ranges > 0,
            "MAX_MM_RANGES": self.ranges,
            "USE_CAUSAL": self.causality == "causal",
            "USE_PER_SEQ_CAUSAL": self.causality == "per request",
            "CHUNK_LOOKBACK": self.chunk[0],
            "CHUNK_SIZE": self.chunk[1],
            "MM_PREFIX_CLAMP_SW": self.clamped,
        }


MASKS = (
    *(Mask(causality, window) for causality in ("causal", "not causal", "per request") for window in (0, 5, 40)),
    Mask(window=16, chunk=(1, 8)),
    *(Mask(window=window, ranges=2, clamped=clamped) for window in (0, 5, 40) for clamped in (False, True)),
)


def claims(mask: Mask, sources: Sources | None = None) -> Iterator[Claim]:
    """Claims on any request, any row of any tile of its queries, and any key of any tile of keys."""
    extraction = Extraction(sources or Sources())
    context, seq_len, query_len, block, request, m, tile, j = integers("context_len seq_len query_len block request m tile j")
    ranges = Pointer("ranges", "int32", 0) if mask.ranges else None
    row, block_q = block * (BLOCK_M // GROUP) + m / GROUP, BLOCK_M // GROUP
    numbers = (number(term, "int32") for term in (context, seq_len, query_len, block))
    bounds = extraction.call(
        f"{HELPERS}.compute_tile_loop_bounds", *numbers, 0, 0, TILE_SIZE=TILE, BLOCK_M=BLOCK_M, BLOCK_Q=block_q,
        num_queries_per_kv=GROUP, IS_3D=False, mm_prefix_range_ptr=ranges, seq_idx=number(request, "int32"), **mask.constants,
    )  # fmt: skip
    first, end, loaded = (as_tensor(bound).term for bound in bounds)
    positions = Tensor((BLOCK_M, 1), "int32", lambda at: context + block * block_q + at[0] / GROUP)
    keys = Tensor((TILE,), "int32", lambda at: tile * TILE + at[0])
    shown = extraction.call(
        f"{HELPERS}.compute_kv_seq_mask", positions, keys, number(request, "int32"), number(seq_len, "int32"), ranges,
        per_seq_causal_ptr=Pointer("causal", "int32", 0), **mask.constants,
    )  # fmt: skip
    is_shown, is_visible = as_tensor(shown).at(m, j - tile * TILE), visible(mask, request, context + row, j, seq_len)
    given = (
        context == seq_len - query_len, seq_len >= 0, seq_len < MAX_LENGTH, query_len < MAX_LENGTH, block >= 0, request >= 0,
        m >= 0, m < BLOCK_M, row < query_len, tile >= 0, tile * TILE <= j, j < (tile + 1) * TILE,
        *(z3.And(edge >= 0, edge < MAX_LENGTH) for edge in edges(mask, request)), *extraction.assumptions,
    )  # fmt: skip
    visited = z3.And(first <= tile, tile < end)
    for name, more, goal in (
        ("a visible key is shown", (), z3.Implies(is_visible, is_shown)),
        ("a visible key is gone through and loaded", (), z3.Implies(is_visible, z3.And(visited, j < loaded))),
        ("no key beyond the request's is loaded", (visited, j < loaded), j < seq_len),
        ("a loaded key that is shown is visible", (visited, j < loaded), z3.Implies(is_shown, is_visible)),
        ("a key that is shown is loaded", (visited,), z3.Implies(is_shown, j < loaded)),
    ):
        yield Claim(f"{mask}: {name}", (*given, *more), goal, (), extraction.lines)


def edges(mask: Mask, request: Term) -> list[Term]:
    """The first and last position of each range of a request."""
    held = memory("ranges")
    return [held(request * mask.ranges * 2 + i) for i in range(2 * mask.ranges)]


def visible(mask: Mask, request: Term, p: Term, j: Term, seq_len: Term) -> Term:
    """True if a query at position p sees key j, in the words of vLLM: a window of W tokens holds the query's own, and W - 1 on
    either side if the request is not causal."""
    flag = {"causal": z3.BoolVal(True), "not causal": z3.BoolVal(False)}.get(mask.causality, memory("causal")(request) != 0)
    near = z3.And(p - j < mask.window, z3.Or(flag, j - p < mask.window)) if mask.window else z3.BoolVal(True)
    if mask.chunk[1] > 0:
        near = p / mask.chunk[1] - j / mask.chunk[1] <= mask.chunk[0]
    ranges = edges(mask, request)
    held = [z3.And(a < b, a <= p, p <= b, a <= j, j <= b) for a, b in zip(ranges[::2], ranges[1::2], strict=True)]
    if mask.clamped and mask.window:
        held = [z3.And(each, p - j < mask.window) for each in held]
    return z3.And(j >= 0, j < seq_len, z3.Or(z3.And(z3.Or(z3.Not(flag), j <= p), near), *held))


def main() -> int:
    """Print the outcome of each claim, and a counterexample of a wrong one. Returns 1 if a claim is not proved, else 0."""
    wrong = 0
    for mask in MASKS:
        for claim in claims(mask):
            result = decide(claim)
            print(f"{claim.name}: {result.outcome}")
            if result.model is not None:
                names = ("query_len", "seq_len", "block", "m", "tile", "j")
                ranges = [result.model(edge) for edge in edges(mask, z3.Int("request"))]
                print(f"  {', '.join(f'{name} {result.model(name)}' for name in names)}, ranges {ranges}")
            wrong += result.outcome != "proved"
    return min(wrong, 1)


if __name__ == "__main__":
    sys.exit(main())
