"""Scenes: a program of the attention kernel with its tile of queries, named as in the specification.

A scene runs `attend_tile` on one row m of an arbitrary tile, and one key j. Its assumptions are the contract's ranges,
and what the theorems of the family `programs` prove of a tile: it has at least one query, and its queries are the
request's.
"""

from dataclasses import dataclass, replace
from typing import Any

import z3
from attn_proofs import inputs
from attn_proofs.extract import Extraction
from attn_proofs.loops import Iteration
from attn_proofs.sources import Sources
from attn_proofs.specification import INT32_MAX, Rules, some_range_holds
from attn_proofs.theorem import Claim, Term, obligations
from attn_proofs.values import Record, as_tensor, integers, memory, number, symbol

ATTEND_TILE = "attn_optimized.kernels.attention.attend_tile"
RULES = "attn_optimized.launch.rules"
BLOCK_N = (16, 32, 64, 128)
"""Keys of a tile in the launch tables (launch/table/*.json)."""
INTERPRETED_BLOCK_N = 64
"""Keys of a tile under the interpreter: counterexamples are of this size, so that they can be run."""
BLOCK_M = 64


@dataclass
class Scene:
    """A run of `attend_tile`: the extraction, the specification's view of row m and key j, and the scene's assumptions."""

    extraction: Extraction
    rules: Rules
    assumptions: list[Term]
    block_n: int
    kind: Record

    @property
    def owned(self) -> Term:
        """True if the tile has row m."""
        return self.extraction.local("rows_of_tile", "owned", 0).value.at(z3.Int("m"))

    def given(self, *more: Term) -> tuple[Term, ...]:
        """The assumptions, including those added by the evaluation of terms."""
        return (*self.assumptions, *self.extraction.assumptions, *more)

    def claim(self, name: str, assumptions: list[Term], goal: Term) -> Claim:
        """A claim about this scene."""
        small = self.small if self.block_n == INTERPRETED_BLOCK_N else None
        return Claim(f"{name}, {self.name}", self.given(*assumptions), goal, small, self.extraction.lines)

    def invariants(self) -> list[Claim]:
        """The claims that the loops over ranges ask for. A small counterexample has a key in a tile that is not gone
        through."""
        begin, end = (self.extraction.local("with_ranges", name, -2).value.term for name in ("begin", "end"))
        far = z3.Or(self.rules.j + self.block_n <= begin, self.rules.j >= end + self.block_n)
        one_range = (*self.small, z3.Int("num_ranges") == 1)
        return [
            replace(
                claim,
                name=f"{claim.name}, {self.name}",
                small=claim.small
                and (*claim.small, *([far, z3.Int("sink_tokens") == 0] if "with_ranges" in claim.name else [])),
            )
            for claim in obligations(self.extraction, self.given(), one_range)
        ]

    @property
    def name(self) -> str:
        without = "a window at most" if self.rules.key_unit is None else "shared keys"
        masks = "any rules" if self.kind.has_other_masks else without
        bias = " and a bias" if self.kind.has_bias else ""
        chunks = ", chunks" if self.rules.chunked_local is not None else ""
        return f"BLOCK_N {self.block_n}, {masks}{chunks}{bias}"

    @property
    def small(self) -> tuple[Term, ...]:
        """Numbers of a case: one request, whose queries are one tile with one row each."""
        numbers = {"window_left": 600, "window_right": 600, "sink_tokens": 200, "chunked_local": 400, "num_ranges": 2}
        ranges_count, sinks, chunk = integers("num_ranges sink_tokens chunked_local")
        extra = [] if self.kind.has_other_masks else [ranges_count == 0, sinks == 0]
        if self.rules.chunked_local is None:  # the host compiles the rules in if one of them is on
            extra += [chunk == 0, ranges_count >= 1 if self.kind.has_other_masks else ranges_count == 0]
        ranges = memory("bidirectional_ranges_ptr")
        return (
            z3.Int("seq_len") <= 600,
            *extra,
            *self.extraction.products.exactly,
            z3.Int("query_len") <= BLOCK_M,
            z3.Int("first_query") == 0,
            z3.Int("end_query") == z3.Int("query_len"),
            z3.Int("inverse_heads_per_group") == 2**16,
            z3.Int("first_row") == 0,
            z3.Int("request") == 0,
            z3.Int("num_tokens") == z3.Int("query_len"),
            z3.Int("heads_per_group") == 1,
            z3.Int("head_group") == 0,
            z3.Int("key_unit") == 3,
            z3.Int("kv_head") == 0,
            *(z3.Int(name) <= most for name, most in numbers.items()),
            *(z3.And(ranges(i) >= -300, ranges(i) <= 600) for i in range(4)),
        )


def scene(sources: Sources, **options: Any) -> Scene:
    """A run of `attend_tile`, shared by the theorems about the same sources; `_run` has the options."""
    key = tuple(sorted(options.items()))
    if key not in sources.scenes:
        sources.scenes[key] = _run(sources, **options)
    return sources.scenes[key]


def _run(
    sources: Sources,
    *,
    block_n: int,
    has_other_masks: bool,
    has_chunks: bool = False,
    has_bias: bool = False,
    shares_keys: bool = False,
    **kind: Any,
) -> Scene:
    """`attend_tile` on row m of a tile, with all rules of the contract, or with a window at most; or where any number of tokens
    share a key, which excludes the other rules."""
    names = ("seq_len", "query_len", "first_query", "end_query", "num_ranges", "request")
    seq_len, query_len, first_query, end_query, num_ranges, request = map(z3.Int, names)
    p, j, m = integers("p j m")
    extraction = Extraction(sources)
    layer, batch = _layer_and_batch(has_other_masks, has_chunks)
    numbers = extraction.call(f"{RULES}.rule_numbers", layer, batch)
    causal = z3.Bool("causal")
    numbers["max_ahead"] = number(z3.If(causal, 0, numbers["max_ahead"]), "int32")  # theorem rules.causal
    together, definition = some_range_holds(extraction.products, request, num_ranges, p, j)
    if shares_keys:
        kind["key_unit"] = symbol("key_unit", least=2)
    made = inputs.kind(block_n=block_n, has_other_masks=has_other_masks, has_bias=has_bias, **kind)
    rules = Rules(
        p=p, j=j, seq_len=seq_len, causal=causal, left=z3.Int("window_left"), right=z3.Int("window_right"),
        sink_tokens=z3.Int("sink_tokens") if has_other_masks else z3.IntVal(0),
        chunked_local=z3.Int("chunked_local") if has_chunks else None, products=extraction.products,
        ranges_clamped=z3.Bool("ranges_clamped"), together=together(num_ranges) if has_other_masks else z3.BoolVal(False),
        hidden=z3.BoolVal(False), key_unit=z3.Int("key_unit") if shares_keys else None,
    )  # fmt: skip
    assumptions = [
        *_contract(rules, num_ranges, request), *definition, first_query >= 0, first_query < end_query, end_query <= query_len,
        query_len <= INT32_MAX, m >= 0, m < BLOCK_M, z3.Int("inverse_heads_per_group") >= 1,
    ]  # fmt: skip
    made_scene = Scene(extraction, rules, assumptions, block_n, made)
    extraction.invariants = _invariants(made_scene, num_ranges)
    arguments = inputs.arguments(sources, **_kernel_numbers(numbers))
    extraction.call(ATTEND_TILE, inputs.tile(sources), arguments, made, BLOCK_M)
    row = extraction.local("rows_of_tile", "query", 0).value.at(m)
    made_scene.assumptions += [p == seq_len - query_len + row, made_scene.owned]
    if shares_keys:
        made_scene.assumptions += _shared(made_scene)
    return made_scene


def _shared(made: Scene) -> list[Term]:
    """The contract's conditions where tokens share a key, and two lemmas.

    Key j is apart from the last keys of positions, and there are no more keys than tokens.
    """
    rules, products, unit = made.rules, made.extraction.products, made.rules.key_unit
    assert unit is not None
    made.extraction.local("last_key", "position").value.at(z3.Int("m"))  # of row m: a quotient is known once it is asked for
    lasts = [last for _, divisor, last in products.quotients if divisor.eq(unit)]
    apart = [fact for last in lasts for fact in products.apart(unit, rules.j, last)]
    no_more = [z3.Implies(keys >= 0, keys <= products.times(keys, unit)) for keys in (rules.j, *lasts)]
    return [rules.causal, rules.left == -1, rules.right == -1, unit >= 2, unit <= INT32_MAX, *apart, *no_more]


def _layer_and_batch(has_other_masks: bool, has_chunks: bool) -> tuple[Record, Record]:
    """A layer and a batch as `launch.rules` reads them; without other masks, all rules but the window are off."""
    left, right = symbol("window_left"), symbol("window_right")
    layer = {
        "scale": 1.0, "logits_soft_cap": None, "window": (left, right), "ranges_clamped": symbol("ranges_clamped", "bool"),
        "sink_tokens": symbol("sink_tokens") if has_other_masks else 0,
        "chunked_local": symbol("chunked_local", least=1) if has_chunks else None,
    }  # fmt: skip
    ranges = Record("Tensor", {"shape": (symbol("num_requests"), symbol("num_ranges"), 2)}) if has_other_masks else None
    batch = {"causal": False, "bidirectional_ranges": ranges, "qq_bias": None}
    return Record("Layer", layer), Record("Batch", batch)


def _kernel_numbers(numbers: dict[str, Any]) -> dict[str, Any]:
    """The host's numbers as the kernel gets them: int32."""
    return {
        name: number(as_tensor(value).term, "int32", as_tensor(value).least)
        for name, value in numbers.items()
        if name not in ("scale", "logits_soft_cap") and name != "qq_bias_len"
    }


def _contract(rules: Rules, num_ranges: Term, request: Term) -> list[Term]:
    """The facts that the argument checks of a layer and a batch ensure: contract/attn_contract/layer.py and batch.py."""
    numbers = [rules.seq_len, num_ranges, request, rules.sink_tokens]
    chunk = rules.chunked_local
    return [
        *([] if chunk is None else [z3.And(chunk >= 1, chunk <= INT32_MAX)]),
        *(z3.And(value >= 0, value <= INT32_MAX) for value in numbers),
        *(z3.And(edge >= -1, edge <= INT32_MAX) for edge in (rules.left, rules.right)),
    ]


def _invariants(scene: Scene, num_ranges: Term) -> dict[str, Any]:
    """The invariants of the two loops over ranges, at row m and key j."""
    rules = scene.rules
    together, _ = some_range_holds(scene.extraction.products, z3.Int("request"), num_ranges, rules.p, rules.j)

    def define(iteration: Iteration) -> Term:
        _, definition = some_range_holds(
            scene.extraction.products, z3.Int("request"), num_ranges, rules.p, rules.j, iteration.count - 1, iteration.count
        )
        scene.extraction.assumptions.extend(definition)
        return z3.And(together(iteration.count), z3.Or(z3.Not(rules.ranges_clamped), rules.in_left))

    def in_any_range(iteration: Iteration) -> list[Term]:
        m, n = z3.Int("m"), rules.j - iteration.outside["key"].at(0)
        was, now = (variables["visible"].at(m, n) for variables in (iteration.before, iteration.now))
        seen = define(iteration)
        in_tile, shown = z3.And(n >= 0, n < scene.block_n), z3.Or(was, z3.And(seen, rules.is_key))
        return [z3.Implies(z3.And(in_tile, now), shown), z3.Implies(z3.And(in_tile, shown), now)]

    def with_ranges(iteration: Iteration) -> list[Term]:
        begin, end = iteration.now["begin"].term, iteration.now["end"].term
        first, last = iteration.before["begin"].term, iteration.before["end"].term
        seen = z3.And(define(iteration), rules.is_key)
        return [
            begin <= first, end >= last, z3.Implies(first >= 0, begin >= 0),
            z3.Implies(last <= rules.seq_len, end <= rules.seq_len),
            z3.Implies(seen, z3.And(begin <= rules.j, rules.j < end)),
        ]  # fmt: skip

    return {"in_any_range": in_any_range, "with_ranges": with_ranges}
