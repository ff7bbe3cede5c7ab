"""Selections that are written in another way."""

import dataclasses

import torch
from attn_fuzz.cases.tensors import Step
from attn_fuzz.properties.relation import CallTarget, Comparison, ErrorBound, relation, variant


@relation(
    "order of selection",
    says="The order of a selection means nothing, nor do entries that name no unit.",
    applies="layers with a selection",
)
def order_of_selection(step: Step, call_target: CallTarget, error: ErrorBound) -> str | None:
    selected = step.batch.selected
    if selected is None:
        return None
    # an entry of no unit stands before, between and behind the others
    moved = torch.nn.functional.pad(selected.flip(-1), (1, 1), value=-1)
    batch = dataclasses.replace(step.batch, selected=moved)
    return Comparison(step, error).differs(variant(step, call_target, batch=batch))
