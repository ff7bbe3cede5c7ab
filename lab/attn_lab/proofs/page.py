"""docs/generated/proofs.md: what is proved, under which assumptions, and what is not. The page holds no times."""

from collections.abc import Sequence

from attn_proofs.theorem import Result, Theorem

_HEADER = """# What is proved for all lengths

Written by `python -m attn_lab proofs page`; with `--check` it proves all again, and fails if the page is not current.

Each theorem is a statement about the source that ships. The statement is extracted from the syntax tree of the kernels
and of the host's functions, and decided by an SMT solver (Z3). A changed kernel changes the statement. Source that the
extractor does not understand is an error that names file, line and construct. Of each theorem, the solver also shows that
its assumptions can hold.

Each theorem has a mutant: a change of the source that makes the statement false. The tests put each mutant in, turn the
solver's counterexample into a case, and run cases on the mutated kernels under Triton's interpreter. They must fail. A
case has the counterexample's lengths, heads, windows and ranges, within what a case of seconds can have; what a claim
leaves open, such as a layout, is the theorem's own. Cases of the theorems on numbers beyond 2^31 have no number of the
solver: their target spreads rows 2^32 units apart.

`attn-parity prove --show` prints the formulas of a theorem, and the lines of source that they come from; `--json FILE` writes
the seconds of each theorem. `python -m attn_lab proofs mutants` puts each mutant in, and runs the case of its counterexample.

## What the statements are about

* **Numbers are integers without bounds.** The theorems of the family `widths` say where 32 bits hold them. An
  address of 64 bits is an offset inside memory that exists.
* **`//` and `%`** of a kernel truncate toward zero; of the host they floor. `&` and `|` are logical on conditions;
  `&` with a number of low bits is a remainder. `tl.cdiv(a, b)` is `(a + b - 1) // b`. A bitcast to uint32 adds 2^32 to a
  negative number.
* **A block is one arbitrary lane.** `tl.arange(0, N)` is a number from 0 to N - 1. A reduction gives a number of which a
  theorem assumes a property: `tl.max` is at least each lane. Sums of lanes are proved by induction over the lanes.
* **A loop is one arbitrary iteration**, with an invariant that is proved of the first iteration and of the next. Sizes of
  blocks are constants: BLOCK_N is 16, 32, 64 or 128, as in the launch tables.
* **Memory** is an unknown function of the offset, one for each tensor. Masked loads give `other`.
* **Products and quotients of two unknown numbers** are functions with the few facts that `proofs/attn_proofs/products.py`
  names. Facts are instantiated, so a proof is one of multiplication, too.
* **What a kernel is compiled for** is fixed in most theorems, since a layout or a width is a constant there. Addresses of K
  and V are proved for heads of 64 dims in blocks of 48 slots with 8 elements in 16 bytes, and for heads of 48 dims in
  tiles of 64 (family `inside`); those of the writer in blocks of 16. In the families `mask` and `tiles`, heads have 16
  dims and blocks 16 slots, all tiles have as many rows (`small_block_m` is 0), V is as wide as K (`block_rest` is 0), and
  the loop without a mask is compiled (`has_unmasked_loop`). Masks of ranges and chunks are proved for BLOCK_N 64. In the
  family `selection`, the loop without a mask is left out, as in each launch over a selection, and units have 1, 2, 3, 4,
  16 or 128 tokens. In the family `select`, units have 1, 4 or 128 tokens, an iteration has 64 or 4096 of them, and their
  codes are any numbers. In the family `keys`, any number of tokens share a key. The other families are about calls without a
  selection, in which each token has its own key.
* **The contract** gives ranges: lengths, rows and rules as the argument checks leave them (`contract/attn_contract`). A
  tile has at least one query, and its queries are the request's: the theorems of the family `programs` say so.

## What is not proved

* Floats: logits, the softmax, rounding, quantization. The fuzzer judges them.
* That the fused multiplication and the dot product run over exactly the loaded tile; that a compiler keeps the meaning of
  the source.
* The writers of latent caches, the rotation, and where the merges of parts and of two states read and write: of the merges,
  only that no number of 32 bits overflows.
* Rows of latent caches, and the scales in them: their loads have no theorem on addresses.
* The values of `qq_bias` and ALiBi. A key that a bias hides is left out of the theorems on masks, but not of `tiles.biased`.
* Where the host's views of a CONTENT_PACKED_SCALED cache begin, which have the scales after its rows: the theorem on scales
  per token takes any three strides.
* That `math.gcd` is the greatest common divisor: the theorem on units uses that a number divides it exactly if it divides all.
* Sums of 64 bits of lanes that access nothing, and 32 bits of chunks. An address that is accessed is inside of a tensor
  (family `inside`), whose memory exists.
* A selection beside sink tokens, chunks or ranges, and the addresses of keys that a selection names.
* Of the choice of units: the logits and their codes, the search for a row's request, and that the rounds of `last_selected`
  find the code of the last unit that is selected. How many ids a row of more than top_k units has is proved of what it finds.
* The plan's choices (tiles, splits, waves): only that any choice covers every query and key.
"""


def text(proved: Sequence[tuple[Theorem, Sequence[Result]]]) -> str:
    claims = sum(len(results) for _, results in proved)
    parts = [_HEADER, f"## The {len(proved)} theorems\n\n{claims} claims, each a question to the solver.\n"]
    families = dict.fromkeys(theorem.family for theorem, _ in proved)
    for family in families:
        parts.append(f"### {family}\n\n| theorem | says | claims | mutant |\n|---|---|---|---|")
        parts += [_row(theorem, results) for theorem, results in proved if theorem.family == family]
        parts[-1] += "\n"
    return "\n".join(parts)


def _row(theorem: Theorem, results: Sequence[Result]) -> str:
    says = f"{theorem.says} {theorem.assumes}".strip()
    change = f"in `{theorem.place.rpartition('.')[2]}`: {_code(theorem.find)} becomes {_code(theorem.replace)}"
    return f"| `{theorem.name}` | {says} | {len(results)} | {change} |"


def _code(source: str) -> str:
    return "`" + " ".join(source.split()).replace("|", "\\|") + "`"
