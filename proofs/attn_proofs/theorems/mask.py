"""The mask of a tile is the specification's visibility formula: what each rule hides, and what the rules together show.

The theorems hold for any masked tile of keys, any owned row m and any key j of the tile. The first theorems say that what the
mask shows is visible, one rule each; the last three say that what is visible is shown. Together: the mask is the formula, for
every set of rules.
"""

from collections.abc import Callable, Iterator

import z3
from attn_proofs.counterexamples import of_scene
from attn_proofs.scenes import BLOCK_N, Scene, scene
from attn_proofs.sources import Sources
from attn_proofs.specification import Rules
from attn_proofs.theorem import Claim, Term, Theorem

VISIBILITY = "attn_optimized.kernels.visibility"


def _scenes(sources: Sources, *, has_chunks: bool | None) -> Iterator[Scene]:
    """Kernels with a window at most, and with any rules, in chunks or not."""
    if has_chunks is not True:
        for block_n in BLOCK_N:
            yield scene(sources, block_n=block_n, has_other_masks=False)
        yield scene(sources, block_n=64, has_other_masks=True)
    if has_chunks is not False:
        yield scene(sources, block_n=64, has_other_masks=True, has_chunks=True)


def _claims(goal: Callable[[Term, Rules], Term], *, other_masks_only: bool = False, has_chunks: bool | None = None):
    def claims(sources: Sources) -> Iterator[Claim]:
        for made in _scenes(sources, has_chunks=has_chunks):
            if other_masks_only and not made.kind.has_other_masks:
                continue
            mask = made.extraction.local("attend_keys", "visible")
            key = made.extraction.local("attend_keys", "key").value
            n = made.rules.j - key.at(0)
            shown = mask.value.at(z3.Int("m"), n)
            yield made.claim("the mask", [*mask.path, n >= 0, n < made.block_n], goal(shown, made.rules))

    return claims


def _hides(allowed: Callable[[Rules], Term], *, but: Callable[[Rules], Term] = lambda rules: rules.in_range):
    """Each key that the mask shows is allowed, or in a range."""
    return lambda shown, rules: z3.Implies(z3.And(shown, z3.Not(but(rules))), allowed(rules))


def _shows(seen: Callable[[Rules], Term]):
    """The mask shows each visible key."""
    return lambda shown, rules: z3.Implies(z3.And(rules.is_key, seen(rules)), shown)


def _loops(function: str, part: int | None) -> Callable[[Sources], Iterator[Claim]]:
    def claims(sources: Sources) -> Iterator[Claim]:
        for has_chunks in (False, True):
            for claim in scene(sources, block_n=64, has_other_masks=True, has_chunks=has_chunks).invariants():
                if f"loop of {function} " in claim.name and (part is None or f"part {part + 1} " in claim.name):
                    yield claim

    return claims


THEOREMS = (
    Theorem(
        "mask.ranges-hidden",
            "The loop over ranges adds to the mask no key but those of a range that holds the query, clamped or not.",
            _loops("in_any_range", 0),
        f"{VISIBILITY}.in_any_range", "position.to(tl.int64) - args.rules.range_left",
            "position.to(tl.int64) - args.rules.range_left - 1", of_scene,
    ),
    Theorem(
        "mask.ranges-shown",
            "The loop over ranges keeps the mask, and adds every key of a range that holds the query, clamped or not.",
        _loops("in_any_range", 1), f"{VISIBILITY}.in_any_range", "first <= position", "first < position", of_scene,
    ),
    Theorem(
        "mask.ranges-bounds",
            "The loop over ranges widens the tile's keys to those of the ranges that hold a query, within the request.",
        _loops("with_ranges", None), f"{VISIBILITY}.with_ranges", "positions.first <= last", "positions.last <= last", of_scene,
    ),
    Theorem(
        "mask.keys", "The mask shows no position beyond the request's keys.",
            _claims(lambda shown, rules: z3.Implies(shown, rules.is_key)),
        f"{VISIBILITY}.in_window", "tl.minimum(end_position + right + 1, seq_len)",
            "tl.minimum(end_position + right + 1, seq_len + 1)", of_scene,
    ),
    Theorem(
        "mask.causal", "The mask of a causal request shows no key after the query, but in a range that holds both.",
        _claims(_hides(lambda rules: rules.is_causal)),
        f"{VISIBILITY}.not_ahead", "tl.minimum(seq_len, position + rules.max_ahead + 1)", "seq_len", of_scene,
    ),
    Theorem(
        "mask.window-left", "The mask shows no key left of the window, but sink tokens, and keys in a range with the query.",
        _claims(_hides(lambda rules: rules.in_left, but=lambda rules: z3.Or(rules.in_range, rules.is_sink_token))),
        f"{VISIBILITY}.among", "(key[None, :] - begin.to(tl.int32)[:, None]).to(tl.uint32, bitcast=True)",
        "(key[None, :] - begin.to(tl.int32)[:, None] + 1).to(tl.uint32, bitcast=True)", of_scene,
    ),
    Theorem(
        "mask.window-right", "The mask shows no key right of the window, but sink tokens, and keys in a range with the query.",
        _claims(_hides(lambda rules: rules.in_right, but=lambda rules: z3.Or(rules.in_range, rules.is_sink_token))),
        f"{VISIBILITY}.in_window", "end_position + right + 1", "end_position + right + 2", of_scene,
    ),
    Theorem(
        "mask.chunk", "The mask shows no key of another chunk, but in a range that holds both.",
            _claims(_hides(lambda rules: rules.in_chunk), has_chunks=True),
        f"{VISIBILITY}.in_chunk", "tl.where(end_position < 0, 0, (end_position // size + 1) * size)",
            "(end_position // size + 1) * size", of_scene,
    ),
    Theorem(
        "mask.shows-window", "The mask shows every key that window, causality and chunk leave.",
        _claims(_shows(lambda rules: z3.And(rules.is_causal, rules.in_window, rules.in_chunk))),
        f"{VISIBILITY}.num_keys", "end - begin", "end - begin - 1", of_scene,
    ),
    Theorem(
        "mask.shows-sinks", "The mask shows every sink token that causality and chunk leave.",
        _claims(_shows(lambda rules: z3.And(rules.is_causal, rules.is_sink_token, rules.in_chunk)), other_masks_only=True),
        f"{VISIBILITY}.visible_keys", "key < args.rules.sink_tokens", "key < args.rules.sink_tokens - 1", of_scene,
    ),
    Theorem(
        "mask.shows-ranges", "The mask shows every key of a range that holds the query, clamped or not.",
        _claims(_shows(lambda rules: rules.in_range), other_masks_only=True),
        f"{VISIBILITY}.visible_keys", "in_any_range(visible, tile, rows, seen.position, key, args)",
        "visible & in_any_range(visible, tile, rows, seen.position, key, args)", of_scene,
    ),
)  # fmt: skip
