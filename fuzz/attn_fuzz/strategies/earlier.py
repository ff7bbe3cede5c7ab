"""Strategies of the calls that come before a case's own call: see `attn_fuzz.cases.earlier`."""

from collections.abc import Callable, Sequence

import msgspec
from attn_contract import RULES, AttentionType
from attn_fuzz.cases.case import CHANGES, CONTENTS, ILLEGAL, MODE, Case
from attn_fuzz.strategies.choices import pick
from attn_fuzz.strategies.tally import Tally
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


def with_earlier(draw: st.DrawFn, family: Sequence[Case], support: Support, refuses: bool, tally: Tally) -> tuple[Case, ...]:
    """The cases of a family. In half of them an earlier call has a change; sometimes the case's own call, or a sibling's, comes
    before that one.

    A family has one change, the one that the run lacks most: a GPU compiles a layer anew for many of them.
    """
    names = [name for name in CHANGES if _may_change(name, family[0], support, refuses)]
    first = pick(draw, range(len(names)))
    change = tally.rarest_change(family[0], (*names[first:], *names[:first]))
    before = [name for name in ("same", MODE) if name in names]
    sequences = ((),) * 6 + ((change,),) * 4 + tuple((name, change) for name in before)
    return tuple(
        msgspec.structs.replace(case, earlier=pick(draw, sequences)) if _may_change(change, case, support, refuses) else case
        for case in family
    )


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
