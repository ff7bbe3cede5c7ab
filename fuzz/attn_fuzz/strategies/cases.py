"""Strategies of whole cases: cases that a target supports, and sometimes a case that it must refuse."""

from typing import Any, get_args

import msgspec
from attn_contract import AttentionType
from attn_fuzz.cases.case import MAX_ELEMENTS, Case, ProgramOrder, Rope, Values, num_elements
from attn_fuzz.strategies.batches import batches
from attn_fuzz.strategies.caches import caches
from attn_fuzz.strategies.earlier import with_earlier
from attn_fuzz.strategies.layers import DrawnLayer, layers
from attn_fuzz.targets.target import Support
from hypothesis import assume
from hypothesis import strategies as st

replace = msgspec.structs.replace
VALUES = ("exact", "one_hot", "signature", "random", "extreme")
ORDERS = get_args(ProgramOrder)


def cases(target: str, support: Support, refuses: bool = True) -> st.SearchStrategy[Case]:
    """Any step that a target supports. If the target promises refusals, a step that it must refuse is sometimes drawn."""
    return _steps_of_both_kinds(target, support, refuses).flatmap(lambda case: with_earlier(case, support, refuses))


def _steps_of_both_kinds(target: str, support: Support, refuses: bool) -> st.SearchStrategy[Case]:
    supported = steps(target, support).filter(lambda case: support.beyond(case) is None)
    if not refuses or support.widened() == support:
        return supported
    refused = steps(target, support.widened()).filter(lambda case: support.beyond(case) is not None)
    # st.one_of would count a strategy only once, even if it is given three times
    return st.sampled_from([supported, supported, supported, refused]).flatmap(lambda steps: steps)


def families(target: str, support: Support, refuses: bool = True) -> st.SearchStrategy[tuple[Case, ...]]:
    """At most `support.steps_per_layer` cases that share a layer. A kernel compiled for the first case serves all of them."""
    if support.steps_per_layer == 1:
        return cases(target, support, refuses).map(lambda case: (case,))
    return _families(target, support, refuses)


@st.composite
def _families(draw: st.DrawFn, target: str, support: Support, refuses: bool) -> tuple[Case, ...]:
    refused = refuses and support.widened() != support and draw(st.sampled_from([False, False, False, True]))
    within = support.widened() if refused else support
    layer = draw(layers(within))
    drawn = [draw(steps(target, within, layer)) for _ in range(support.steps_per_layer)]
    fitting = [case for case in drawn if (support.beyond(case) is not None) == refused]
    assume(fitting)
    return tuple(draw(with_earlier(case, support, refuses)) for case in fitting)


@st.composite
def steps(draw: st.DrawFn, target: str, support: Support, layer_drawn: DrawnLayer | None = None) -> Case:
    """Any step that a support allows, of a layer that `layers` has drawn."""
    layer, layer_cache, rules = layer_drawn or draw(layers(support))
    attn_type: AttentionType = layer["attn_type"]
    requests = draw(batches(support, attn_type, layer_cache.get("block_size", 16), rules))
    case = Case(
        target=target,
        **layer,
        per_request_causal=len({request.causal for request in requests}) > 1,
        requests=requests,
        unowned_rows=draw(st.sampled_from([0, 1, 3])),
        rows_past=draw(st.sampled_from([0, 1, 17])),
        kv_rows_past=draw(st.sampled_from([0, 2])),
        slack=draw(st.sampled_from([0, 0, 0, 0, 1, 100])),
        fused_qkv=draw(st.booleans()),
        flat_out=draw(st.booleans()),
        lse="lse" in support.rules and draw(st.booleans()),
        # caps matter for large logits
        values=Values(
            kind=draw(st.sampled_from(VALUES + VALUES[-1:] * ("logits_soft_cap" in rules))),
            seed=draw(st.integers(0, 2**32 - 1)),
        ),
        program_order=draw(st.sampled_from(ORDERS)),
    )
    if layer_cache:
        case = draw(_with_cache(support, case, layer_cache, rules))
    assume(num_elements(case) <= MAX_ELEMENTS)  # a case beyond this limit could not be replayed
    return case


def values(rules: set[str]) -> st.SearchStrategy[Values]:
    """All kinds of values. Large logits are drawn twice as often with a cap, because a cap changes large logits most."""
    kinds = st.sampled_from(VALUES + VALUES[-1:] * ("logits_soft_cap" in rules))
    return st.builds(Values, kind=kinds, seed=st.integers(0, 2**32 - 1))


@st.composite
def _with_cache(draw: st.DrawFn, support: Support, case: Case, layer_cache: dict[str, Any], rules: set[str]) -> Case:
    """The case with a cache, and with the fields that say how this step uses the cache."""
    case = replace(case, writes="rope" in rules or draw(st.sampled_from([True, True, False])))
    cache, requests = draw(caches(support, case, layer_cache))
    tokens = sum(request.query_len for request in requests)
    unwritten = ()
    if case.attn_type is AttentionType.DECODER and case.writes and tokens:
        unwritten = tuple(sorted(draw(st.sets(st.integers(0, tokens - 1), max_size=2))))
    return replace(
        case,
        requests=requests,
        cache=cache,
        unwritten=unwritten,
        recycled=draw(st.booleans()),
        finite_slots=support.unused_slots != "NaN" and draw(st.sampled_from([True, True, True, False])),
        table_padding=draw(st.sampled_from([0, 1, 3])),
        rope=draw(ropes(case.head_size)) if "rope" in rules else None,
    )


@st.composite
def ropes(draw: st.DrawFn, head_size: int) -> Rope:
    """Rotations of all dims, half of the dims, or one pair of dims."""
    return Rope(
        rotary_dim=draw(st.sampled_from([head_size - head_size % 2, max(2, head_size // 4 * 2), 2])),
        neox=draw(st.booleans()),
        narrow_cache=draw(st.booleans()),
        all_rows=draw(st.booleans()),
    )
