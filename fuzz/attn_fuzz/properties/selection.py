"""Selections that are written in another way."""

import dataclasses

import torch
from attn_fuzz.cases.tensors import Step
from attn_fuzz.properties import rules
from attn_fuzz.properties.bound import keys_and_values
from attn_fuzz.properties.relation import CallTarget, Comparison, ErrorBound, relation, request_rows, variant


@relation(
    "order of selection",
    says="A selection in another order, padded with -1, gives the same output.",
    rules=rules.ANY_ORDER,
    applies="layers with a selection",
)
def order_of_selection(step: Step, call_target: CallTarget, error: ErrorBound) -> str | None:
    selected = step.batch.selected
    if selected is None:
        return None
    # an entry of no unit stands before, between and after the others
    moved = torch.nn.functional.pad(selected.flip(-1), (1, 1), value=-1)
    batch = dataclasses.replace(step.batch, selected=moved)
    return Comparison(step, error).differs(variant(step, call_target, batch=batch))


@relation(
    "all selected",
    says="A selection of all units, padded with -1, gives the output of a layer without a selection.",
    rules=rules.ANY_ORDER,
    applies="layers with a selection, if no key and no value is NaN",
)
def all_selected(step: Step, call_target: CallTarget, error: ErrorBound) -> str | None:
    batch, unit = step.batch, step.layer.selection_unit
    if batch.selected is None or unit is None:
        return None
    units = (step.layer.num_keys(batch.seq_lens) + unit - 1) // unit
    entries = torch.arange(max(units.tolist(), default=0) + 1, dtype=torch.int32, device=step.q.device)
    of_rows = units.repeat_interleave(batch.query_start_loc.diff())
    every = torch.full((1, len(step.q), len(entries)), -1, dtype=torch.int32, device=step.q.device)
    every[:, : len(of_rows)] = torch.where(entries < of_rows[:, None], entries, -1)
    without = {
        "layer": dataclasses.replace(step.layer, selection_unit=None),
        "batch": dataclasses.replace(batch, selected=None),
    }
    keys = (keys_and_values(step, r, slice(*rows)) for r, rows in enumerate(request_rows(batch)))
    if any(numbers.isnan().any() for pair in keys for numbers in pair):
        return None  # what a query does not see may be NaN, and kernels differ in what they make of NaN
    dense = variant(step, call_target, **without)
    return Comparison(dense, error).differs(variant(step, call_target, batch=dataclasses.replace(batch, selected=every)))
