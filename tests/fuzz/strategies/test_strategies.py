"""Drawn cases are valid and within the target's support; and a few hundred cases visit every edge that bugs live on."""

import functools
import itertools
from dataclasses import replace

import msgspec
import pytest
from attn_contract import AttentionType, Layout
from attn_fuzz.cases import contradictions
from attn_fuzz.cases.case import Case, Request
from attn_fuzz.cases.contradictions import ROWS, X_PACKED
from attn_fuzz.cases.edges import edges
from attn_fuzz.cases.features import FEATURES, features
from attn_fuzz.report.drawn import can_have
from attn_fuzz.run.case.trial import try_case
from attn_fuzz.strategies import cases, families
from attn_fuzz.strategies.cases import plain
from attn_fuzz.strategies.independent import INDEPENDENT
from attn_fuzz.strategies.tally import Tally
from attn_fuzz.targets.reference import REFERENCE_FP32
from attn_fuzz.targets.support import EVERYTHING, Support
from hypothesis import HealthCheck, Phase, given, seed, settings

DRAWN = settings(INDEPENDENT, phases=[Phase.generate], suppress_health_check=list(HealthCheck))


@functools.cache
def draw(support: Support, examples: int = 60, refuses: bool = True) -> list[Case]:
    """The cases that a run draws. A test does not change them: others look at the same."""
    found, tally = [], Tally()

    @seed(3)
    @settings(DRAWN, max_examples=examples)
    @given(cases("anything", support, refuses, tally))
    def collect(case):
        found.append(case)
        tally.add(case)

    collect()
    return found


@pytest.fixture(scope="module")
def drawn() -> list[Case]:
    return draw(EVERYTHING, 400)


def some_request(holds):
    return lambda case: any(holds(case, request) for request in case.requests)


def is_decoder(case):
    return case.attn_type is AttentionType.DECODER


def blocks_of(case):
    return [block for request in case.requests for block in request.blocks]


def at_block_edge(more):
    return some_request(
        lambda case, r: (
            case.cache is not None
            and case.cache.block_size > 3
            and r.seq_len > 3
            and (r.seq_len - more) % case.cache.block_size == 0
        )
    )


def rules_of(case) -> set[str]:
    """Names of the rules that make a case more than plain attention over a plain cache."""
    quantized = {"quantized"} if case.cache is not None and case.cache.dtype else set()
    return quantized | {name for name in RULES if getattr(case, name)}


RULES = (
    "sink_tokens",
    "chunked_local",
    "bidirectional_ranges",
    "logits_soft_cap",
    "alibi_slopes",
    "qq_bias",
    "rope",
    "output_dtype",
)


def ranges_of(request) -> tuple[tuple[int, int], ...]:
    return request.bidirectional_ranges


def test_an_edge_that_was_drawn_least_is_drawn_next(drawn):
    """Of two steps that differ in an edge alone, the one whose edge the run lacks adds more."""
    plain = next(case for case in drawn if case.attn_type is AttentionType.ENCODER)
    sizes = {length: Request(query_len=length, seq_len=length, causal=False) for length in (33, 34, 35)}
    of = {length: msgspec.structs.replace(plain, requests=(request,), earlier=()) for length, request in sizes.items()}
    tally = Tally()
    for length in (34, 34, 35):
        tally.add(of[length])
    least = tally.novelty(of[33])
    assert least > tally.novelty(of[35]), "33 queries are one more than a tile has"
    for _ in range(3):
        tally.add(of[33])
    assert tally.novelty(of[33]) < least / 4


def test_cases_meet_the_edges_of_tiles_and_blocks(drawn):
    lengths = {
        f"{name} at tile {tile} {more:+d}" for name in ("queries", "keys") for tile in (16, 32, 64) for more in (-1, 0, 1)
    }
    met = {edge for case in drawn[:200] for edge in edges(case)}
    assert met >= {*lengths, "keys at block +0", "left edge at tile 64 +1"}


EDGES = {
    "queries without a key": some_request(lambda case, r: r.seq_len == 0 < r.query_len),
    "fewer keys than causal queries": some_request(lambda case, r: r.causal and 0 < r.seq_len < r.query_len),
    "seq_len of a block - 1": at_block_edge(-1),
    "seq_len of a block": at_block_edge(0),
    "seq_len of a block + 1": at_block_edge(1),
    "a long context": some_request(lambda case, r: r.seq_len > 500),
    "no context": some_request(lambda case, r: is_decoder(case) and r.seq_len == r.query_len > 1),
    "cross-attention of several queries": some_request(
        lambda case, r: case.attn_type is AttentionType.ENCODER_DECODER and r.query_len > 1 and r.seq_len > 1
    ),
    "decode only": lambda case: is_decoder(case) and len(case.requests) > 1 and all(r.query_len == 1 for r in case.requests),
    "prefill beside decode": lambda case: (
        {1} < {r.query_len for r in case.requests} and max(r.query_len for r in case.requests) > 8
    ),
    "a shared prefix": lambda case: len(set(blocks_of(case))) < len(blocks_of(case)),
    "a permuted table": some_request(
        lambda case, r: len(r.blocks) > 2 and list(r.blocks) not in (sorted(r.blocks), sorted(r.blocks)[::-1])
    ),
    "unused blocks": lambda case: case.cache is not None and len(set(blocks_of(case))) + 1 < case.cache.num_blocks,
    "block ids beyond 16 bits": lambda case: any(block >= 1 << 15 for block in blocks_of(case)),
    "recycled keys": lambda case: case.recycled and case.window[0] >= 0,
    "another writer": lambda case: case.cache is not None and case.cache.writer not in (None, case.cache.layout),
    "another neighbour": lambda case: case.cache is not None and case.cache.neighbour not in (None, case.cache.layout),
    "a tree of drafts": lambda case: case.qq_bias == "tree" and case.max_query_len - case.slack > 1,
    "random biases of drafts": lambda case: case.qq_bias == "random" and case.max_query_len - case.slack > 1,
    "a cap below large logits": lambda case: (
        case.logits_soft_cap is not None and case.logits_soft_cap <= 1 and case.values.kind == "extreme"
    ),
    "sink tokens outside a window": some_request(
        lambda case, r: case.sink_tokens and 0 <= case.window[0] < r.context_len - case.sink_tokens
    ),
    "tokens that complete no key": some_request(lambda case, r: case.key_unit and 0 < r.seq_len < case.key_unit),
    "a last key that the last token completes": some_request(
        lambda case, r: case.key_unit and r.query_len and r.seq_len and r.seq_len % case.key_unit == 0
    ),
    "the end of a key between two queries": some_request(lambda case, r: completes_a_key_between_queries(case, r)),
    "the end of a long key between two queries": some_request(
        lambda case, r: (case.key_unit or 0) > r.query_len and completes_a_key_between_queries(case, r)
    ),
    "a selection of keys of several tokens": lambda case: case.key_unit and case.selection_unit,
    "several chunks": some_request(lambda case, r: case.chunked_local is not None and r.seq_len > 2 * case.chunked_local),
    "queries before chunks": some_request(lambda case, r: case.chunked_local is not None and r.context_len < 0),
    "a range over the context's end": some_request(
        lambda case, r: any(0 <= a < r.context_len <= b for a, b in ranges_of(r)) and r.query_len
    ),
    "a range of new tokens": some_request(lambda case, r: r.causal and any(r.context_len <= a < b for a, b in ranges_of(r))),
    "a range past the end": some_request(lambda case, r: any(a <= r.seq_len <= b for a, b in ranges_of(r))),
    "a range that is none": some_request(lambda case, r: any(b < a for a, b in ranges_of(r))),
    "ranges that overlap": some_request(lambda case, r: any(a < c <= b < d for a, b in ranges_of(r) for c, d in ranges_of(r))),
    "clamped ranges": lambda case: case.ranges_clamped and case.bidirectional_ranges and case.window[0] >= 0,
    "more positions than slots": lambda case: case.rope is not None and case.rope.all_rows and case.rows_past > 0,
    "a rotation in a fused tensor": lambda case: case.rope is not None and case.fused_qkv,
    "an x-packed neighbour of rows": lambda case: (
        case.cache is not None and case.cache.neighbour in X_PACKED and case.cache.layout in ROWS
    ),
    "two x-packed writers of one memory": lambda case: (
        case.cache is not None and {case.cache.layout, case.cache.writer} == set(X_PACKED)
    ),
    "rows written as packed content": lambda case: (
        case.cache is not None and case.cache.writer is Layout.CONTENT_PACKED and case.cache.layout in ROWS
    ),
    "two blocks": lambda case: case.cache is not None and case.cache.num_blocks == 2,
    "two blocks and heads": lambda case: case.cache is not None and case.cache.num_blocks == 2 == case.num_kv_heads,
    "blocks of no power of two": lambda case: case.cache is not None and case.cache.block_size in (48, 80, 544),
    "several rules": lambda case: len(rules_of(case)) > 3,
    "no rule": lambda case: not rules_of(case),
    "groups": lambda case: case.group_size > 1 and case.num_kv_heads > 1,
}


def completes_a_key_between_queries(case, request) -> bool:
    unit = case.key_unit
    return bool(unit) and max(0, request.context_len + 1) // unit < request.seq_len // unit


def test_rows_of_one_tile_see_unlike_numbers_of_shared_keys_in_one_case_of_forty(drawn):
    """Where queries select keys, each is a tile of its own, and no mask of one row can be another's."""
    alike = [case for case in drawn if case.key_unit and not case.selection_unit]
    assert sum(any(completes_a_key_between_queries(case, r) for r in case.requests) for case in alike) > len(drawn) / 40


def test_every_feature_that_a_case_can_have_is_drawn(drawn):
    assert {name for case in drawn for name in features(case)} == {one.name for one in FEATURES if can_have(EVERYTHING, one)}


@pytest.mark.parametrize("edge", EDGES)
def test_a_few_hundred_cases_visit(edge, drawn):
    assert any(EDGES[edge](case) for case in drawn)


@pytest.mark.parametrize(("one", "other"), list(itertools.combinations((*RULES, "quantized", "window", "sinks"), 2)))
def test_a_few_hundred_cases_have_every_pair_of_rules(one, other, drawn):
    assert any({one, other} <= names_of(case) for case in drawn)


def names_of(case) -> set[str]:
    usual = {"window"} if case.window != (-1, -1) else set()
    return rules_of(case) | usual | ({"sinks"} if case.sinks else set())


def test_some_queries_see_a_whole_tile_that_another_chunk_hides_from_their_neighbours():
    """Nothing else shows that a tile of queries over a chunk's end skips the mask where only its last queries may."""
    support = replace(
        EVERYTHING,
        attn_types=(AttentionType.DECODER,),
        rules=("non_causal", "chunked_local"),
        causal=False,
        max_tokens=128,
        max_seq_len=512,
    )
    tile = max(support.tile_sizes)

    def shows(case, request) -> bool:
        chunk = case.chunked_local or 0
        ends = range(chunk, request.seq_len, chunk) if chunk > 256 else ()  # a shorter chunk may have no loop without a mask
        return any(
            request.context_len < end
            and (end - request.context_len) % tile
            and -(-end // tile) * tile + tile <= request.seq_len
            for end in ends
        )

    assert any(shows(case, request) for case in draw(support, 200) for request in case.requests)


def over_chunks(case: Case, request: Request) -> list[tuple[int, int]]:
    """Pairs of a query and of a key of an earlier chunk that one range holds, in which the window hides the key before it from
    the query."""
    chunk, left = case.chunked_local or 1 << 31, case.window[0]
    return [
        (query, query - left)
        for first, last in ranges_of(request)
        for query in range(max(0, first, request.context_len), min(last + 1, request.seq_len))
        if case.ranges_clamped and left > 0 and max(0, first) < query - left < query // chunk * chunk
    ]


def test_ranges_are_clamped_among_keys_of_another_chunk(drawn):
    """Only there does it show that a range is clamped to the chunk, or not at all, or that a chunk hides a range's keys."""
    assert sum(any(over_chunks(case, request) for request in case.requests) for case in drawn) > 3


def test_every_case_is_a_valid_call(drawn):
    """By the case's own check and by all checks of the contract, those that read tensors included."""
    for case in drawn[::20]:
        contradictions.check(case)
        verdict = try_case(case, REFERENCE_FP32, "cpu")
        assert verdict.kind == "agree", verdict.message


def without(*names: str) -> tuple[str, ...]:
    """All rules that a case can have but these."""
    return tuple(name for name in EVERYTHING.rules if name not in names)


SUPPORTS = {
    "one of everything": replace(
        EVERYTHING,
        attn_types=(AttentionType.DECODER,),
        dtypes=("bfloat16",),
        layouts=(Layout.KV_FIRST_HND,),
        head_sizes=(96,),
        group_sizes=(3,),
        block_sizes=(48,),
    ),
    "causal only": replace(EVERYTHING, rules=without("non_causal", "per_request_causal")),
    "non-causal only": replace(EVERYTHING, causal=False),
    "no mask but causality, no sinks, no LSE": replace(
        EVERYTHING, rules=without("window", "sinks", "lse", "per_request_causal")
    ),
    "no rule": replace(EVERYTHING, rules=("non_causal",), cache_dtypes=(), output_dtypes=()),
    "nothing but what must be named": Support(
        attn_types=(AttentionType.DECODER,), dtypes=("float32",), layouts=(Layout.BLOCKS_FIRST_NHD,)
    ),
    "x-packed in large blocks only": replace(EVERYTHING, layouts=(Layout.SHUFFLED,), block_sizes=(16, 1), head_sizes=(16, 20)),
    "fnuz only": replace(EVERYTHING, cache_dtypes=("fp8_e4m3fnuz",), output_dtypes=("fp8_e4m3fnuz",)),
    "dense": replace(EVERYTHING, attn_types=(AttentionType.ENCODER_ONLY,)),
    "tiles larger than a step": replace(EVERYTHING, tile_sizes=(512,), max_tokens=64, max_seq_len=128),
    "tiny": replace(EVERYTHING, max_tokens=1, max_seq_len=1, tile_sizes=(16,)),
}


@pytest.mark.parametrize("name", SUPPORTS)
def test_sizes_are_within_the_support_and_properties_beyond_it_are_drawn_to_be_refused(name):
    support = SUPPORTS[name]
    found = draw(support)
    assert any(support.beyond(case) is None for case in found)
    assert any(support.beyond(case) for case in found) == (support.widened() != support)
    for case in found:
        assert support.not_drawn(case) is None
        if case.cache is not None:
            assert {case.cache.writer, case.cache.neighbour} <= {None, *support.layouts}
        if len(case.requests) > 1:
            assert sum(request.query_len for request in case.requests) <= support.max_tokens
            assert sum(map(case.num_keys, case.requests)) <= 2 * support.max_seq_len


def test_cases_that_only_exclude_excludes_are_drawn_to_be_refused():
    """Both rules are supported, and not together: no other rule or format makes such a case one to refuse."""
    support = replace(
        EVERYTHING,
        exclude=lambda case: "sinks with a cap" if case.sinks and case.logits_soft_cap is not None else None,
    )
    assert replace(support, exclude=EVERYTHING.exclude) in support.widenings()
    assert any(support.beyond(case) == "sinks with a cap" for case in draw(support))


@pytest.mark.parametrize("name", EVERYTHING.rules)
def test_a_rule_that_a_support_does_not_name_is_beyond_it(name, drawn):
    """A rule that `beyond` forgets would be run, and its refusal a failure; or worse, never asked for."""
    silent = replace(EVERYTHING, rules=without(name))
    assert any(silent.beyond(case) for case in drawn)
    assert silent.widened() == EVERYTHING


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"attn_types": ()}, "attn_types: got none"),
        ({"layouts": ()}, "layouts: got none"),
        ({"cache_dtypes": ("int8",), "scales": ()}, "scales: got none"),
        ({"cache_dtypes": (), "unquantized": False}, "cache_dtypes: got none"),
        ({"rules": ("windows",)}, "got 'windows', expected names among window, "),
        ({"causal": False, "rules": ("window",)}, "neither causal nor the rule non_causal"),
        ({"layouts": (Layout.LATENT,)}, "got no head_size_v, expected it beside LATENT"),
    ],
)
def test_a_support_that_names_nothing_or_something_else_is_refused(fields, said):
    with pytest.raises(ValueError, match=said):
        replace(EVERYTHING, **fields)


def test_most_cases_are_within_the_support():
    """Also where refusals are drawn: one of four cases is to be refused."""
    support = SUPPORTS["causal only"]
    found = draw(support, 300)  # 0.07 to 0.13 by seed
    beyond = sum(support.beyond(case) is not None for case in found)
    assert 0.05 < beyond / len(found) < 0.4


@pytest.mark.parametrize("scales", ["tensor", "head", "token"])
def test_scales_of_a_quantized_cache_are_those_of_the_support(scales):
    support = replace(EVERYTHING, cache_dtypes=("fp8_e4m3fn",), scales=(scales,))
    found = draw(support)
    drawn = {case.cache.scales for case in found if case.cache is not None and support.beyond(case) is None}
    assert drawn == {None, scales}


def test_a_rule_that_a_support_requires_is_in_each_layer_and_a_layer_without_it_is_beyond():
    packed = replace(
        EVERYTHING,
        attn_types=(AttentionType.DECODER,),
        layouts=(Layout.CONTENT_PACKED,),
        rules=("head_size_v",),
        cache_dtypes=(),
    )
    requires = replace(packed, required_rules=("head_size_v",))
    plain = [case for case in draw(packed, refuses=False) if not case.head_size_v]
    assert {requires.beyond(case) for case in plain} == {"a layer without a head size of V other than K's (head_size_v)"}
    assert all(case.head_size_v for case in draw(requires, refuses=False))
    assert any(one.rules == requires.rules and not one.required_rules for one in requires.widenings())
    with pytest.raises(ValueError, match=r"required_rules: got 'sinks', expected names of Support\.rules"):
        replace(packed, required_rules=("sinks",))


@pytest.mark.parametrize("layouts", [EVERYTHING.layouts, (Layout.LATENT, Layout.LATENT_E8M0_PLANES)], ids=["pages", "latent"])
def test_a_support_of_quantized_caches_alone_draws_no_other_and_a_cache_of_the_dtype_of_k_is_beyond(layouts):
    types = EVERYTHING.attn_types if layouts == EVERYTHING.layouts else (AttentionType.DECODER,)
    support = replace(EVERYTHING, attn_types=types, layouts=layouts, rules=(*EVERYTHING.rules, "head_size_v"))
    only = replace(support, unquantized=False)
    with_cache = [case for case in draw(only, refuses=False) if case.cache is not None]
    assert with_cache
    assert all(case.is_quantized and only.beyond(case) is None for case in with_cache)
    others = [case for case in draw(support, refuses=False) if case.cache is not None and not case.is_quantized]
    assert {only.beyond(case) for case in others} == {"a cache that is not quantized"}
    assert any(one.rules == only.rules and one.unquantized for one in only.widenings())
    assert "a cache that is not quantized" in {only.beyond(case) for case in draw(only, 150)}


def test_many_cases_are_plain_in_every_way(drawn):
    """Where each choice is drawn by itself, none of these cases is so."""
    usual = plain(EVERYTHING)
    held = [case for case in drawn if usual.engine.not_sent(case) is None and case.dtype in usual.dtypes]
    assert len(held) > len(drawn) / 5
    assert {bool(case.cache) for case in held} == {False, True}
    assert {rule for case in held for rule in case.rules} == {rule for case in drawn for rule in case.rules}


def test_a_plain_support_keeps_to_what_it_is_of():
    narrow = replace(EVERYTHING, dtypes=("float16",), head_sizes=(20, 33))
    assert plain(narrow).dtypes == ("float16",)
    assert plain(narrow).head_sizes == (20, 33)
    assert plain(EVERYTHING).engine.padding == (0,)
    assert all(size % 16 == 0 for size in plain(EVERYTHING).head_sizes)


def test_slots_are_mostly_finite_where_a_support_says_so(drawn):
    assert not any(case.finite_slots for case in drawn)
    cached = [case for case in draw(replace(EVERYTHING, unused_slots="mostly finite")) if case.cache is not None]
    assert 0.6 < sum(case.finite_slots for case in cached) / len(cached) < 0.9


def drawn_families(support):
    found = []

    @seed(1)
    @settings(DRAWN, max_examples=60)
    @given(families("anything", support))
    def collect(family):
        found.append(family)

    collect()
    return found


def test_cases_of_a_family_share_their_layer_and_keep_to_the_support():
    support = replace(EVERYTHING, steps_per_layer=4, rules=without("sinks"))
    found = drawn_families(support)
    assert max(map(len, found)) == 4
    layers = [
        {(case.attn_type, case.dtype, case.head_size, case.group_size, case.window) for case in family} for family in found
    ]
    assert max(map(len, layers)) == 1
    assert max(len({case.requests for case in family}) for family in found) == 4
    assert {support.beyond(case) is not None for family in found for case in family} == {True, False}
    assert all(len({support.beyond(case) for case in family}) == 1 for family in found)


def test_a_seed_that_its_family_gives_a_case_is_not_one_that_the_target_excludes():
    exclude = lambda case: "its choice" if case.values.choice("anything", 3) == 1 else None  # noqa: E731
    support = replace(EVERYTHING, steps_per_layer=4, exclude=exclude)
    found = drawn_families(support)
    assert max(map(len, found)) == 4
    assert all(len({support.beyond(case) is None for case in family}) == 1 for family in found)


def test_cases_of_a_family_have_their_own_numbers_where_a_support_says_so():
    support = replace(EVERYTHING, steps_per_layer=4, own_numbers=True)
    found = drawn_families(support)
    for family in found:
        assert len({(case.attn_type, case.dtype, case.head_size, case.group_size, case.output_dtype) for case in family}) == 1
        assert (
            len(
                {(case.logits_soft_cap is None, case.sinks is None, case.alibi_slopes, case.sink_tokens > 0) for case in family}
            )
            == 1
        )
        caches = {case.cache and (case.cache.layout, case.cache.dtype, case.cache.block_size) for case in family}
        assert len(caches) == 1
        assert {support.beyond(case) for case in family} == {None}
    for number in ("scale", "num_kv_heads", "window"):
        assert sum(len({getattr(case, number) for case in family}) > 1 for family in found) > 10, number
    assert any({case.cache.scales for case in family} == {"tensor", "head"} for family in found if family[0].cache)
