"""Which rules a case has: none, the usual two, one alone, or several together."""

from attn_contract import AttentionType
from attn_fuzz.cases.case import UNDEFINED
from attn_fuzz.targets.target import Support
from hypothesis import strategies as st

USUAL = ("window", "sinks")
# those of many kinds, or that only some cases can have, are chosen so many times as often as others
WEIGHT = {"quantized": 4, "rope": 2, "has_ranges": 2, "qq_bias": 2}


def rules(support: Support, attn_type: AttentionType) -> st.SearchStrategy[set[str]]:
    """Names of rules that are defined for an attention type and that the target supports."""
    possible = _possible(support, attn_type)
    if not possible:
        return st.just(set())
    usual = st.sets(st.sampled_from([rule for rule in USUAL if rule in possible] or possible))
    each = st.sampled_from([rule for rule in possible for _ in range(WEIGHT.get(rule, 1))])
    alone = each.map(lambda rule: {rule})
    together = st.sets(each, min_size=min(2, len(possible)), max_size=6)
    return st.one_of(usual, alone, together, together, together)


def _possible(support: Support, attn_type: AttentionType) -> list[str]:
    can = {
        "window": support.window,
        "sinks": support.sinks,
        "soft_cap": support.soft_cap,
        "alibi": support.alibi,
        "sink_tokens": support.sink_tokens,
        "chunked_local": support.chunked_local,
        "has_ranges": support.ranges,
        "qq_bias": support.qq_bias,
        "quantized": bool(support.cache_dtypes) and attn_type.reads_cache,
        "output_dtype": bool(support.output_dtypes),
        "rope": support.rope,
    }
    return [rule for rule, is_supported in can.items() if is_supported and rule not in UNDEFINED[attn_type]]
