"""Asks which mistakes a case that agrees would have shown, had the kernel made them."""

import math
import random
from collections.abc import Sequence

import torch
from attn_fuzz.account.account import AGREES, ANYWHERE, DIFFERS, DTYPE, NOT_ASKED, SIZES, Account, Accounts
from attn_fuzz.cases.case import Case
from attn_fuzz.cases.tensors import Step
from attn_fuzz.mistakes.mistake import NOT_HERE, Change
from attn_fuzz.mistakes.part import Part, parts_of
from attn_fuzz.verdict.judge import Compared, Judgement
from attn_fuzz.verdict.oracle import Oracle, as_read, as_stored, clamped
from attn_fuzz.verdict.rounding import Rounding
from attn_reference import attend

MARGIN = 2.0
"""A mistake is seen if the output is off by so many bounds: a kernel that makes it may be off by one bound the other way."""
MOST = 6.0
"""The price of the questions that a case is asked. One question to a small request costs 1: the reference takes most of its
time to begin."""
ADVANCE = 300
"""Until a run has asked so many questions, a case may be asked what is left of them, too: a short run could have seen most
mistakes in its first cases."""
MANY, AGAIN = 10, 4
"""A mistake that MANY cases have not shown is more urgent than others in every AGAIN-th case alone."""
LOGITS = 1 << 19
"""So many logits cost as much again."""


def places(case: Case, paths: Sequence[str]) -> tuple[str, ...]:
    """The places that a case is in.

    Args:
        paths: the paths that the target took, by its own account.
    """
    modes = [f"@{mode}" for mode in case.target.split("@")[1:]]
    found = [ANYWHERE, *dict.fromkeys(paths), *modes]
    if case.cache is None:
        return (*found, "a call without a cache")
    return (*found, f"{DTYPE}{case.cache.dtype or case.dtype}", case.cache.layout.name)


def answers(
    case: Case, step: Step, judgement: Judgement, rounding: Rounding, where: Sequence[str], accounts: Accounts
) -> bytes:
    """An answer for each of SIZES, of a case whose output is right.

    Mistakes are asked until the price of a case is spent. The seed of the case decides between those that are as urgent.

    Args:
        step: the case's call, with the inputs that attention has read.
        judgement: of its outputs.
        rounding: the rounding of the kernel.
        where: the case's places.
        accounts: of the cases before.
    """
    of_step = [each.request for each in judgement.compared if each.tensor == "out"]
    rights = [_Right(part, step, judgement, rounding) for part in parts_of(step, of_step)]
    # a large request shows the most, unless it is too dear
    rights.sort(key=lambda right: (right.price > 2, right.price if right.price > 2 else -right.price))
    asked = sum(accounts.get(ANYWHERE, Account()).asked)
    found, left = bytearray(len(SIZES)), MOST + max(ADVANCE - asked, 0)
    for index in _in_order(case, {place: accounts.get(place, Account()) for place in where}):
        if left <= 0:
            break
        for right in rights:
            answer = right.answer(SIZES[index][1])
            found[index] = max(found[index], answer)
            left -= right.price * (answer != NOT_ASKED)
            if answer == DIFFERS or left <= 0:
                break
    return bytes(found)


def _in_order(case: Case, accounts: Accounts) -> list[int]:
    """The sizes to ask: first those that no case has shown anywhere, of which those that MANY were asked come first now and
    then, and after them those that the fewest cases were asked at a place."""
    needs = {place: account.needs(place) for place, account in accounts.items()}
    order = [index for index in range(len(SIZES)) if any(need[index] for need in needs.values())]
    rng, anywhere = random.Random(case.values.seed), accounts[ANYWHERE]
    rng.shuffle(order)
    most = MANY if rng.randrange(AGAIN) else math.inf

    def urgency(index: int) -> tuple[bool, int]:
        is_known = anywhere.shown[index] > 0 or anywhere.asked[index] >= most
        return is_known, min(accounts[place].asked[index] for place, need in needs.items() if need[index])

    return sorted(order, key=urgency)


class _Right:
    """The right output of a request, and how far the judge lets a kernel's be from it.

    Attributes:
        price: what asking costs.
    """

    def __init__(self, part: Part, step: Step, judgement: Judgement, rounding: Rounding) -> None:
        self.part, self.step, self.rounding, self.is_exact = part, step, rounding, judgement.bitwise
        self.compared = {each.tensor: each for each in judgement.compared if each.request.index == part.request.index}
        self.price = 1 + part.request.visible.numel() * part.layer.num_heads / LOGITS

    def answer(self, change: Change) -> int:
        try:
            other = change(self.part)
            if other is None or _is_the_same(other, self.part):
                return NOT_ASKED
            out, lse = self._of(other)
            if other.outputs is not None:
                right, (out, lse) = out, other.outputs(out, lse)
                if out is right and "lse" not in self.compared:
                    return NOT_ASKED  # it changes the LSE, which the call does not return
            outputs = {"out": out, "lse": lse}
            is_shown = any(_differ(outputs[name], each) for name, each in self.compared.items())
        except NOT_HERE:
            return NOT_ASKED
        return DIFFERS if is_shown else AGREES

    def _of(self, part: Part) -> tuple[torch.Tensor, torch.Tensor]:
        """out [q, H, D] and LSE [q, H] of a part, before what the mistake makes of them."""
        dtype = self.step.out.dtype
        if self.is_exact:
            oracle = Oracle(part.request, part.layer, dtype, self.rounding, self.step.q.dtype)
            return as_read(as_stored(oracle.exact_out, dtype, part.layer), part.layer), oracle.lse
        state = attend(part.request, part.layer)
        return clamped(state.out, dtype, part.layer), state.lse.T


def _is_the_same(other: Part, part: Part) -> bool:
    """True if a mistake changes nothing that attention reads."""
    a, b = other.request, part.request
    if other.outputs is not None or any(getattr(a, name) is not getattr(b, name) for name in ("query", "key", "value")):
        return False
    of_layer = ("scale", "logits_soft_cap", "sinks", "output_scale", "num_kv_heads")
    if any(getattr(other.layer, name) is not getattr(part.layer, name) for name in of_layer):
        return False
    same_bias = a.bias is b.bias or (a.bias is not None and b.bias is not None and torch.equal(a.bias, b.bias))
    return same_bias and torch.equal(a.visible, b.visible)


def _differ(got: torch.Tensor, right: Compared) -> bool:
    return not bool(((got == right.right) | ((got - right.right).abs() <= MARGIN * right.bound)).all())
