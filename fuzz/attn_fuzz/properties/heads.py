"""Heads and channels in another order."""

import dataclasses
from typing import Any

import torch
from attn_contract.rules import HEADS, KV_HEADS
from attn_fuzz.cases import axes
from attn_fuzz.cases.poison import bits
from attn_fuzz.cases.tensors import Step
from attn_fuzz.properties import rules
from attn_fuzz.properties.relation import CallTarget, Comparison, ErrorBound, Outputs, relation, same_bits, variant
from attn_fuzz.properties.slots import elements, has_latent_value, rows_of_slots, with_rows


@relation(
    "head permutation",
    says="KV heads in another order, each with its group of query heads, give the output in that order.",
    rules=rules.ANY_ORDER,
    applies="two KV heads or more",
)
def head_permutation(step: Step, call_target: CallTarget) -> str | None:
    layer, device = step.layer, step.q.device
    if layer.num_kv_heads < 2:
        return None
    kv_heads = torch.arange(layer.num_kv_heads, device=device).flip(0)
    heads = torch.arange(layer.num_heads, device=device).view(layer.num_kv_heads, -1)[kv_heads].flatten()
    changes: dict[str, Any] = {"q": step.q[:, heads]}
    if step.raw is not None and step.view is not None:
        changes["raw"] = step.raw.clone()
        for places in elements(step.view, device):
            bits(changes["raw"])[places] = bits(step.raw)[places[..., kv_heads, :]]
    elif step.k is not None and step.v is not None:
        changes |= {"k": step.k[:, kv_heads], "v": step.v[:, kv_heads]}
    entries = {HEADS: heads, KV_HEADS: kv_heads}
    moved, of_batch = (axes.taken(holder, layer, entries) for holder in (layer, step.batch))
    changes["batch"] = dataclasses.replace(step.batch, **of_batch)
    part = Outputs.of(variant(step, call_target, layer=dataclasses.replace(layer, **moved), **changes))
    back = heads.argsort()
    return same_bits(Outputs.of(step), Outputs(part.out[:, back], None if part.lse is None else part.lse[:, back]))


@relation(
    "channel permutation",
    says="Channels of V in another order give the channels of the output in that order.",
    rules=rules.LINEAR_IN_V,
    applies="all but latent caches",
)
def channel_permutation(step: Step, call_target: CallTarget, error: ErrorBound | None = None) -> str | None:
    if has_latent_value(step):
        return None
    channels = torch.arange(step.layer.v_head_size, device=step.q.device).flip(0)
    part = variant(step, call_target, **with_rows(step, v=rows_of_slots(step)[1][..., channels]))
    # the channels back in their first order
    back = part.out.unflatten(-1, (-1, step.layer.v_head_size))[..., channels].reshape(part.out.shape)
    return Comparison(step, error).differs(dataclasses.replace(part, out=back))
