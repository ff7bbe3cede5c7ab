"""Strategies of the calls that come before a case's own call: see `attn_fuzz.cases.earlier`."""

from collections.abc import Callable, Sequence

import msgspec
from attn_contract import RULES, AttentionType
from attn_fuzz.cases import earlier_writes
from attn_fuzz.cases.case import CHANGES, CONTENTS, ILLEGAL, MAX_EARLIER, MODE, Case
from attn_fuzz.strategies.choices import pick
from attn_fuzz.strategies.tally import Tally
from attn_fuzz.targets.engine import ANY_ENGINE
from attn_fuzz.targets.support import Support
from hypothesis import strategies as st

_SAFE = ("same", "requests", CONTENTS)
"""Changes for every target: the call asks for no more than the case's own. A target that does not refuse gets no other change.
A target whose engine never sends some forms of tensors gets illegal calls beside these, if it refuses."""
MANY_KEYS = 128
"""The fewest keys of a request whose keys kernels split."""
_APPLIES: dict[str, Callable[[Case], object]] = {
    "output strides": lambda case: case.num_rows,
    ILLEGAL: lambda case: case.num_rows,
    "output dtype": lambda case: case.output_dtype,
    "lse strides": lambda case: case.lse,
    **dict.fromkeys(("k strides", "v strides", "k alignment", "v alignment"), lambda case: case.cache is None),
    **dict.fromkeys(("cache strides", "cache alignment"), lambda case: case.cache is not None),
    "table strides": lambda case: case.cache is not None,
    "cache dtype": lambda case: case.cache is not None and case.cache.dtype != "int8" and case.q_scale is None,
    "layout": lambda case: case.cache is not None and case.cache.block_size == case.num_kv_heads,
    "rows": lambda case: case.rows_past,
    "heads": lambda case: case.group_size > 1,
    "kv_heads": lambda case: case.num_kv_heads > 1,
    "head_size": lambda case: case.head_size_v is None and case.head_size % 32 == 0,
    "scales": lambda case: case.num_kv_heads > 1 and case.cache is not None and case.cache.scales in ("tensor", "head"),
    "causal": lambda case: case.attn_type is AttentionType.DECODER,
    "requests": lambda case: len(case.requests) > 1,
    "num_actual_tokens": lambda case: case.unowned_rows or case.rows_past,
}
"""Says by the name of a change whether it does something to a case; a change that is not named here does so to all."""


def with_earlier(draw: st.DrawFn, family: Sequence[Case], support: Support, refuses: bool, tally: Tally) -> tuple[Case, ...]:
    """The cases of a family. Half of them have earlier calls: changes that the run lacks most, or one of them after the case's
    own call or a sibling's.

    A case alone has several changes, the rarest one last. A family has one change of calls and one of writes, because a GPU
    compiles a layer anew for many of them; a sibling's call, which is compiled anew each time, is not made beside them. Half
    of the cases that are to be refused for one rule come after a call of the same layer without the rule. Of the others, a
    sixth has no change but other numbers in the same tensors: engines write each step into the tensors of the step before, and
    a kernel may keep what it has converted of the first one. Some decodes of many keys come after one of few: the bound of
    their lengths says how their keys are split.
    """
    is_alone = len(family) == 1
    names = [name for name in CHANGES if _may_change(name, family[0], support, refuses)]
    first = pick(draw, range(len(names)))
    rotated = (*names[first:], *names[:first])
    changes = tally.rarest_changes(family[0], rotated, MAX_EARLIER if is_alone else 1)
    serving = [name for name in names if _turns_off(name, family[0], support)]
    if serving and pick(draw, (False, True)):
        changes = (*changes[1:], pick(draw, serving))
    elif not serving and pick(draw, (False,) * 5 + (True,)):
        changes = (CONTENTS,)
    before = [name for name in ("same", MODE if is_alone else "same") if name in names]
    sequences = ((),) * 6 + (changes,) * 4 + tuple((name, changes[-1]) for name in before)
    if not serving and "max_seq_len" in names and _is_long_decode(family[0]) and pick(draw, (False, False, True)):
        changes = ("max_seq_len",)
        sequences = ((), changes, changes)
    alike = [
        msgspec.structs.replace(case, values=earlier_writes.choosing_alike(case.values, family[0].values)) for case in family
    ]
    return tuple(
        msgspec.structs.replace(changed, earlier=pick(draw, sequences))
        if support.exclude(changed) == support.exclude(case)
        and support.engine.not_sent(changed) == support.engine.not_sent(case)
        and all(_may_change(change, case, support, refuses) for change in changes)
        else case
        for case, changed in zip(family, alike, strict=True)
    )


def _is_long_decode(case: Case) -> bool:
    longest = max((request.seq_len for request in case.requests), default=0)
    return case.cache is not None and case.max_query_len - case.slack <= 1 and longest >= MANY_KEYS


def _turns_off(name: str, case: Case, support: Support) -> bool:
    """True if a change takes from a case the only rule that is beyond the support."""
    rule = RULES.get(name.removeprefix("no "))
    if rule is None or case.rules.keys() - {*support.rules} != {rule.name}:
        return False
    return name.startswith("no ") or rule.is_tensor or rule.type is bool


def _may_change(name: str, case: Case, support: Support, refuses: bool) -> bool:
    """True if the change does something to the case, and the target may get the call."""
    if name.startswith("no "):
        return name.removeprefix("no ") in case.rules
    if not _APPLIES.get(name, lambda case: True)(case):
        return False
    rule = {"causal": "non_causal"}.get(name, name)
    if rule in RULES:
        may_be_on = refuses and rule in support.rules and case.attn_type in RULES[rule].attn_types
        return rule in case.rules or may_be_on
    # a change that contradicts the contract is refused for any sender
    return name in _SAFE or (refuses and (name == ILLEGAL or support.engine == ANY_ENGINE))
