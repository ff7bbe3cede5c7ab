"""Masks that hide nothing, and keys that are hidden from everyone."""

import dataclasses

import torch
from attn_contract import AttentionType
from attn_fuzz.cases.tensors import Step
from attn_fuzz.properties import rules
from attn_fuzz.properties.relation import CallTarget, Comparison, ErrorBound, Launch, relation, request_rows, variant
from attn_fuzz.properties.slots import without_first_blocks


@relation(
    "wide window",
    says="A window that is wider than every sequence gives the output of an unlimited one.",
    rules=rules.ANY_ORDER,
    adds=("window",),
    applies="layers whose window is unlimited on a side or on both",
)
def wide_window(
    step: Step, call_target: CallTarget, error: ErrorBound | None = None, launch: Launch | None = None
) -> str | None:
    if -1 not in step.layer.window:
        return None
    longest = max(step.batch.max_seq_len, step.batch.max_query_len)
    left, right = (longest if edge == -1 else edge for edge in step.layer.window)
    layer = dataclasses.replace(step.layer, window=(left, right))
    return Comparison(step, error, launch).differs(variant(step, call_target, layer=layer))


@relation(
    "last row",
    says="The last query of a request sees all keys, causal or not, and gives the same output.",
    rules=rules.LAST_SEES_ALL,
    adds=("non_causal",),
    applies="steps with a query",
)
def last_row(step: Step, call_target: CallTarget, error: ErrorBound | None = None, launch: Launch | None = None) -> str | None:
    rows = torch.tensor([end - 1 for start, end in request_rows(step.batch) if start < end], device=step.q.device).long()
    if not len(rows):
        return None
    causal = step.batch.causal
    batch = dataclasses.replace(step.batch, causal=~causal if isinstance(causal, torch.Tensor) else not causal)
    return Comparison(step, error, launch).differs(variant(step, call_target, batch=batch), rows, rows)


@relation(
    "forgotten keys",
    says="Without the blocks of keys before every query's window, the output is the same, though all positions are less.",
    rules=rules.OF_DISTANCES,
    applies="decoders with a window that is limited to the left; long contexts",
)
def forgotten_keys(step: Step, call_target: CallTarget, error: ErrorBound | None = None) -> str | None:
    layer, left = step.layer, step.layer.window[0]
    if layer.attn_type is not AttentionType.DECODER or left < 0 or step.view is None:
        return None
    contexts = (step.batch.seq_lens - step.batch.query_start_loc.diff()).tolist()
    blocks = [max(0, context - left) // step.view.block_size for context in contexts]
    if not any(blocks):
        return None
    return Comparison(step, error).differs(variant(step, call_target, batch=without_first_blocks(step, blocks)))
