"""Strategies of whole cases: cases that a target supports, and sometimes a case that it must refuse."""

import dataclasses

import msgspec
from attn_contract import AttentionType
from attn_fuzz.cases import edges_of_scales
from attn_fuzz.cases.case import PROGRAM_ORDERS, Cache, Case, Request, Rope, Values
from attn_fuzz.strategies.batches import allowed, batches
from attn_fuzz.strategies.caches import caches
from attn_fuzz.strategies.choices import pick
from attn_fuzz.strategies.earlier import with_earlier
from attn_fuzz.strategies.layers import DrawnLayer, layer, with_own_numbers
from attn_fuzz.strategies.tally import Tally
from attn_fuzz.targets.engine import Engine, window_by_causality
from attn_fuzz.targets.support import Support
from hypothesis import reject
from hypothesis import strategies as st

replace = msgspec.structs.replace
VALUES = ("exact", "one_hot", "signature", "random", "extreme", "below")
CANDIDATES = 4
"""The layers that are drawn for each one that is taken: the one that adds most to what the run has drawn so far."""
STEPS = 2
"""The steps of the layer that are drawn for each one that is taken, by the same criterion."""

WIDE_ROW = 2048
"""A layer whose rows of q have twice this number of elements, or more, gets fewer tokens and keys: 16 heads of 128 dims."""
FEW_TOKENS, FEW_KEYS = 16, 64
"""The fewest tokens and keys of such a layer."""
FEW_ROWS = 16
"""The query heads of a latent cache that a tile of few rows holds."""
MAX_SELECTING = 24
"""The most tokens of a step whose queries select keys: each query and KV head is a program of its own."""


def cases(target: str, support: Support, refuses: bool = True, tally: Tally | None = None) -> st.SearchStrategy[Case]:
    """Any step that a target supports. The arguments are those of `families`."""
    return _families(target, support, refuses, tally, 1).map(lambda family: family[0])


def families(
    target: str, support: Support, refuses: bool = True, tally: Tally | None = None
) -> st.SearchStrategy[tuple[Case, ...]]:
    """At most `support.steps_per_layer` cases that share a layer. A kernel compiled for the first case serves all of them.

    With `support.own_numbers` they share what kernels are compiled for, and each has its own numbers.

    Args:
        target, support: the target, and its support.
        refuses: True if the target promises refusals. A case that it must refuse is sometimes drawn then.
        tally: what the run has drawn so far. What it lacks is drawn next, and cases that are thrown away are counted there.
            None: each draw is independent of the others.
    """
    return _families(target, support, refuses, tally, support.steps_per_layer)


@st.composite
def _families(
    draw: st.DrawFn, target: str, support: Support, refuses: bool, tally: Tally | None, num_steps: int
) -> tuple[Case, ...]:
    can_refuse = refuses and support.widened() != support
    refused = can_refuse and pick(draw, (False, False, False, True))
    within = pick(draw, support.widenings()) if refused else support
    if pick(draw, (False, False, True)):
        within = plain(within)
    num_layers, least_steps = (1, 1) if tally is None else (CANDIDATES, STEPS)
    tally = Tally() if tally is None else tally
    chosen = _rarest([layer(draw, within) for _ in range(num_layers)], target, support, refused, tally)
    drawn = [draw(steps(target, within, chosen))]
    while len(drawn) < max(num_steps, least_steps):
        layer_of_step = with_own_numbers(draw, within, chosen) if within.own_numbers else chosen
        drawn.append(draw(steps(target, within, layer_of_step)))
    fitting = [case for case in drawn if tally.takes(case, support, refused)]
    if not fitting:
        reject()
    family = fitting if num_steps > 1 else [max(fitting, key=tally.novelty)]
    return with_earlier(draw, family, support, refuses, tally)


def plain(support: Support) -> Support:
    """The support where everything is as it mostly is: no padding, one order of dimensions, strides that any tensor has, rows
    of whole pieces of 16 bytes, and bfloat16.

    A kernel has a fast way for such steps, which is the way that it mostly goes. Where each choice is drawn by itself, not one
    of 600 cases is so. To leave many things out of a case at once is known as swarm testing (Groce et al., ISSTA 2012).
    """
    engine = support.engine
    usual = {
        field.name: getattr(engine, field.name)[:1]
        for field in dataclasses.fields(engine)
        if isinstance(getattr(engine, field.name), tuple)
    }
    return dataclasses.replace(
        support,
        engine=dataclasses.replace(engine, **usual),
        dtypes=("bfloat16",) if "bfloat16" in support.dtypes else support.dtypes,
        head_sizes=tuple(size for size in support.head_sizes if size % 16 == 0) or support.head_sizes,
    )


def _rarest(candidates: list[DrawnLayer], target: str, support: Support, refused: bool, tally: Tally) -> DrawnLayer:
    """The layer that adds most to what was drawn, among those that the target supports, or those that it must refuse."""
    alone = {i: _layer_alone(one, target, support.causal) for i, one in enumerate(candidates)}
    fitting = [i for i, case in alone.items() if (support.beyond(case) is not None) == refused] or alone
    return candidates[max(fitting, key=lambda i: tally.novelty(alone[i]))]


def _layer_alone(drawn: DrawnLayer, target: str, causal: bool) -> Case:
    """A case that has the layer, and decodes one token."""
    is_causal = causal and drawn.case["attn_type"] is AttentionType.DECODER
    request = Request(query_len=1, seq_len=1, blocks=(0,) if drawn.cache else (), causal=is_causal)
    cache = Cache(**drawn.cache, num_blocks=1) if drawn.cache else None
    return Case(target=target, **drawn.case, requests=(request,), cache=cache)


@st.composite
def steps(draw: st.DrawFn, target: str, support: Support, drawn: DrawnLayer) -> Case:
    """Any step of a layer that a support allows."""
    attn_type: AttentionType = drawn.case["attn_type"]
    support = _with_few_rows(draw, _with_fewer_tokens(support, drawn), drawn)
    engine, rules = support.engine, drawn.rules
    window_left, chunk = drawn.case.get("window", (-1, -1))[0], drawn.case.get("chunked_local", 0)
    block_size, key_unit = drawn.cache.get("block_size", 16), drawn.case.get("key_unit", 1)
    requests = draw(batches(support, attn_type, block_size, rules, window_left, chunk, key_unit))
    unlike_strides = pick(draw, engine.unlike_strides)
    # out has strides of its own, too: neither flat nor dense
    num_forms = 1 if unlike_strides and pick(draw, (False, True)) else None
    case = Case(
        target=target,
        **drawn.case,
        per_request_causal=_is_per_request(draw, support, rules, attn_type, requests),
        requests=requests,
        unowned_rows=pick(draw, engine.unowned_rows),
        rows_past=pick(draw, engine.rows_past),
        kv_rows_past=pick(draw, engine.kv_rows_past),
        slack=pick(draw, engine.slack[:1] * 3 + engine.slack),
        fused_qkv=pick(draw, engine.fused_qkv) and not drawn.case["q_scale"],
        unlike_strides=unlike_strides,
        flat_out=pick(draw, engine.flat_out[:num_forms]),
        dense_out=pick(draw, engine.dense_out[:num_forms]),
        lse="lse" in support.rules and pick(draw, (False, True)),
        values=values(draw, rules, engine),
        program_order=pick(draw, PROGRAM_ORDERS),
    )
    if "window" in rules and drawn.window_kind == "by causality":
        case = replace(case, window=window_by_causality(case.window[0], case))
    if "ahead" in engine.selections and _has_units_ahead(case) and pick(draw, (False, True, True)):
        case = replace(case, selected="ahead")
    return _with_cache(draw, support, case, drawn) if drawn.cache else case


def _has_units_ahead(case: Case) -> bool:
    """True if a request has units after those that its first query sees."""
    if case.selection_unit is None:
        return False
    unit, key_unit = case.selection_unit, case.key_unit or 1
    counts = (
        (r, [-(-(max(tokens, 0) // key_unit) // unit) for tokens in (r.context_len + 1, r.seq_len)]) for r in case.requests
    )
    return any(r.causal and r.query_len and first < last for r, (first, last) in counts)


def _with_fewer_tokens(support: Support, drawn: DrawnLayer) -> Support:
    """Less work for a layer of wide rows, and for one whose queries select keys.

    Its examples take as long as those of others then.
    """
    if "selection_unit" in drawn.rules:
        return dataclasses.replace(support, max_tokens=min(support.max_tokens, MAX_SELECTING))
    heads = drawn.case["num_kv_heads"] * drawn.case["group_size"]
    factor = heads * max(drawn.case["head_size"], drawn.case.get("head_size_v") or 0) // WIDE_ROW
    if factor < 2:
        return support
    tokens, keys = max(FEW_TOKENS, support.max_tokens // factor), max(FEW_KEYS, support.max_seq_len // factor)
    return dataclasses.replace(support, max_tokens=min(tokens, support.max_tokens), max_seq_len=min(keys, support.max_seq_len))


def _with_few_rows(draw: st.DrawFn, support: Support, drawn: DrawnLayer) -> Support:
    """A third of the steps of a few heads over a latent cache decode one token for each request.

    Few rows are a path of their own. Each of several KV heads has few in many steps, but here all heads share one.
    """
    engine = support.engine
    is_latent = bool(drawn.cache) and drawn.cache["layout"].has_latent_value
    has_few = is_latent and drawn.case["group_size"] <= FEW_ROWS and "any" in engine.query_lens
    if not has_few or pick(draw, (True, True, False)):
        return support
    return dataclasses.replace(support, engine=dataclasses.replace(engine, query_lens=("one",), slack=(0,)))


def _is_per_request(
    draw: st.DrawFn, support: Support, rules: set[str], attn_type: AttentionType, requests: tuple[Request, ...]
) -> bool:
    """True if the step has a causal flag for each request: where flags differ, and sometimes where they agree."""
    if len({request.causal for request in requests}) > 1:
        return True
    possible = attn_type is AttentionType.DECODER and {"non_causal", "per_request_causal"} <= allowed(support, rules)
    return possible and pick(draw, (False,) * 7 + (True,))


def values(draw: st.DrawFn, rules: set[str], engine: Engine) -> Values:
    """A kind of values. Large logits are drawn twice as often with a cap, because a cap changes large logits most."""
    kind = pick(draw, VALUES + ("extreme",) * ("logits_soft_cap" in rules))
    drawn = Values(kind=kind, seed=draw(st.integers(0, 2**32 - 1)))
    return drawn if engine.least_scales else edges_of_scales.without_least(drawn)


def _with_cache(draw: st.DrawFn, support: Support, case: Case, drawn: DrawnLayer) -> Case:
    """The case with a cache, and with the fields that say how this step uses the cache."""
    engine, rotates = support.engine, "rope" in drawn.rules
    # what a bias hides from all queries of the step may be garbage, unless the step writes it
    hides = case.qq_bias == "hiding"
    case = replace(case, writes=rotates or pick(draw, engine.writes[-1:] * hides + engine.writes[:1] + engine.writes))
    cache, requests = draw(caches(support, case, drawn.cache))
    tokens = sum(request.query_len for request in requests)
    unwritten: set[int] = set()
    if case.attn_type is AttentionType.DECODER and case.writes and tokens and engine.unwritten:
        unwritten = {pick(draw, range(tokens)) for _ in range(pick(draw, (0, 1, 2)))}
    saturates = engine.saturated and case.writes and cache.dtype is not None and not rotates
    return replace(
        case,
        requests=requests,
        cache=cache,
        unwritten=tuple(sorted(unwritten)),
        ordinary_writes=cache.neighbour is not None and pick(draw, engine.ordinary_writes[:1] * 2 + engine.ordinary_writes),
        saturated=saturates and pick(draw, (False, False, True)),
        recycled=engine.recycled and pick(draw, (False, True, *[True] * hides)),
        finite_slots=pick(draw, FINITE_SLOTS[support.unused_slots]),
        table_padding=pick(draw, engine.table_padding),
        rope=_rope(draw, case.head_size) if rotates else None,
    )


FINITE_SLOTS = {"NaN": (False,), "mostly finite": (True, True, True, False), "finite": (True,)}
"""The values that are drawn for a case's `finite_slots`, by `Support.unused_slots`."""


def _rope(draw: st.DrawFn, head_size: int) -> Rope:
    """A rotation of all dims, half of the dims, or one pair of dims."""
    return Rope(
        rotary_dim=pick(draw, (head_size - head_size % 2, max(2, head_size // 4 * 2), 2)),
        neox=pick(draw, (False, True)),
        narrow_cache=pick(draw, (False, True)),
        all_rows=pick(draw, (False, True)),
    )
