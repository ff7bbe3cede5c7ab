"""Strategies of the calls that come before a case's own call: see `attn_fuzz.cases.earlier`."""

from collections.abc import Callable

import msgspec
from attn_contract import RULES, AttentionType
from attn_fuzz.cases.case import CHANGES, CONTENTS, ILLEGAL, MODE, Case
from attn_fuzz.targets.engine import ANY_ENGINE
from attn_fuzz.targets.target import Support
from hypothesis import strategies as st

_SAFE = ("same", "requests", CONTENTS)
"""Changes for every target: the call asks for no more than the case's own. A target that does not refuse gets no other change,
nor does a target whose engine never sends some forms of tensors."""
_APPLIES: dict[str, Callable[[Case], object]] = {
    "output strides": lambda case: case.num_rows,
    ILLEGAL: lambda case: case.num_rows,
    "output dtype": lambda case: case.output_dtype,
    "lse strides": lambda case: case.lse,
    "k strides": lambda case: case.cache is None,
    "v strides": lambda case: case.cache is None,
    "cache strides": lambda case: case.cache is not None,
    "table strides": lambda case: case.cache is not None,
    "rows": lambda case: case.rows_past,
    "scales": lambda case: case.num_kv_heads > 1 and case.cache is not None and case.cache.scales in ("tensor", "head"),
    "causal": lambda case: case.attn_type is AttentionType.DECODER,
    "requests": lambda case: len(case.requests) > 1,
    "num_actual_tokens": lambda case: case.unowned_rows or case.rows_past,
}
"""Whether a change does something to a case; a change that is not named here does so to all."""


def with_earlier(case: Case, support: Support, refuses: bool) -> st.SearchStrategy[Case]:
    """The case. In half of the draws an earlier call has a change; sometimes the case's own call comes before that one too."""
    names = [name for name in CHANGES if _may_change(name, case, support, refuses)]
    # a mode has more keys to be kept apart by than a number has
    names += [MODE] * 8 * (MODE in names)
    one = st.sampled_from(names).map(lambda name: (name,))
    back = one.map(lambda names: ("same", *names))
    lists = st.sampled_from([0] * 6 + [1] * 5 + [2])
    drawn = lists.flatmap(lambda kind: (st.just(()), one, back)[kind])
    return drawn.map(lambda earlier: msgspec.structs.replace(case, earlier=earlier))


def _may_change(name: str, case: Case, support: Support, refuses: bool) -> bool:
    """Whether the change does something to the case, and the target may get the call."""
    if name.startswith("no "):
        return name.removeprefix("no ") in case.rules
    if not _APPLIES.get(name, lambda case: True)(case):
        return False
    rule = {"causal": "non_causal"}.get(name, name)
    if rule in RULES:
        may_be_on = refuses and rule in support.rules and case.attn_type in RULES[rule].attn_types
        return rule in case.rules or may_be_on
    return name in _SAFE or (refuses and support.engine == ANY_ENGINE)
