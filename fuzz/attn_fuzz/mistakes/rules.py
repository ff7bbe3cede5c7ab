"""The loss of each rule that no other module has mistakes about, so that a new rule has one."""

import dataclasses

from attn_contract import RULES
from attn_contract.rules import label_of
from attn_fuzz.mistakes.mistake import Change, Mistake, mistake
from attn_fuzz.mistakes.part import Part
from attn_fuzz.verdict.oracle import requests

_WITHOUT = {"selection_unit": {"selected": None}}
"""Fields of the batch that a rule of a layer needs."""


def _without(name: str) -> Change:
    """The request of the same call without a rule, as the reference reads it."""

    def changed(part: Part) -> Part | None:
        layer, batch = part.call.layer, part.call.batch
        if not RULES[name].is_asked(getattr(layer if hasattr(layer, name) else batch, name)):
            return None
        off = {name: RULES[name].off}
        if hasattr(layer, name):
            layer, batch = dataclasses.replace(layer, **off), dataclasses.replace(batch, **_WITHOUT.get(name, {}))
        else:
            batch = dataclasses.replace(batch, **off)
        call = dataclasses.replace(part.call, layer=layer, batch=batch)
        request = next(each for each in requests(call) if each.rows == part.request.rows)
        return dataclasses.replace(part, call=call, layer=layer, batch=batch, request=request)

    return changed


def losses(others: tuple[Mistake, ...]) -> tuple[Mistake, ...]:
    """The loss of each rule of a layer or a step that `others` are not about."""
    known = {each.about for each in others}
    names = [name for name, rule in RULES.items() if rule.holder in ("Layer", "Batch") and name not in known]
    return tuple(dataclasses.replace(mistake(f"{label_of(name)}: lost", _without(name)), about=name) for name in names)
