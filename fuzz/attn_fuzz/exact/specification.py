"""Attention in elements: one formula for each row and head, without tiles, maxima or an order of sums.

    s_j = scale * q.k_j;  s_j = c * tanh(s_j / c) with a soft cap c;  s_j += -slope * |j - p| + qq_bias
    w_j = exp(s_j) if row p sees key j, else 0;  w_sink = exp(sink)
    l = w_sink + sum_j w_j;  out = sum_j w_j v_j / l, or 0 if nothing is seen;  lse = log(l)

The reference decides which keys a row sees, where keys lie, and what a quantized cache holds: `attn_reference` reads a call in
float64, in which `stored * scale` is exact, and `attn_reference.masks` has the visible keys. Nothing else of the reference's
arithmetic is used.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from attn_contract import Layer
from attn_fuzz.cases.tensors import Step
from attn_fuzz.exact import algebra, elements, fields
from attn_fuzz.exact.elements import Elements
from attn_fuzz.exact.fields import VALUES
from attn_fuzz.verdict.oracle import requests
from attn_reference import Request
from attn_reference.logits import alibi, place_qq_bias

FAR = -algebra.MIN_EXPONENT / 4
"""The least magnitude of a far logit or sink. In base 2, two of less than this differ by less than -MIN_EXPONENT."""


@dataclass(frozen=True)
class Rows:
    """A slice of a request's rows.

    Args:
        request: its index.
        rows: indices of rows of q.
        out: [q, H, D] values.
        total: [H, q] values: l, whose logarithm is the LSE.
        is_empty: [H, q], whether a row has neither a key nor a sink. Its out is 0 and its LSE is -inf.
        is_comparable: [H, q]. A row with a far sink, or one that sees a key with a far logit, is not: relative to a sink of
            2^126, another logit is what stands for -infinity (`algebra.MIN_EXPONENT`).
    """

    request: int
    rows: slice
    out: np.ndarray
    total: np.ndarray
    is_empty: np.ndarray
    is_comparable: np.ndarray


def specified(step: Step) -> Iterator[Rows]:
    """The outputs of a step, request by request."""
    for request in requests(step):
        yield _rows(request, step)


def _rows(request: Request, step: Step) -> Rows:
    layer = step.layer
    group = layer.num_heads // layer.num_kv_heads
    of_heads = np.broadcast_to(request.visible.cpu().numpy(), (layer.num_heads, *request.visible.shape[-2:]))
    seen = request.seen.cpu().numpy()  # keys that no row sees may hold anything
    query, key, value = (_block(each) for each in (request.query, request.key, request.value))
    key, value = (each.moved(lambda part: np.where(seen[..., None], part, 0)) for each in (key, value))
    out, totals, empty, near = [], [], [], []
    for head in range(layer.num_heads):
        q, k, v, visible = query[:, head], key[:, head // group], value[:, head // group], of_heads[head]
        logits = _logits(q, k, head, request, step)
        weights = np.where(visible, _value(algebra.exp(logits)), np.uint64(0))
        total, none = fields.total(weights, 1, VALUES), ~visible.any(1)
        if layer.sinks is not None and float(layer.sinks[head]) > -np.inf:
            sink = _value(algebra.exp(_block(layer.sinks[head].reshape(1).double())))
            total, none = fields.plus(total, sink, VALUES), none & False
        sums = fields.product(weights, _value(v), VALUES)
        out.append(fields.times(sums, fields.inverse(total, VALUES)[:, None], VALUES))
        totals.append(total)
        empty.append(none)
        near.append(_near(layer, head) & (np.where(visible, np.abs(logits.order), 0).max(1, initial=0) < FAR))
    whole = np.stack(out, 1)
    if layer.output_scale is not None:
        scale = _value(_block(layer.output_scale.reshape(1).double()))
        whole = fields.times(whole, fields.inverse(scale, VALUES), VALUES)
    return Rows(request.index, request.rows, whole, np.stack(totals), np.stack(empty), np.stack(near))


def _near(layer: Layer, head: int) -> bool:
    """True if the head's sink is -inf, or so near that other logits are numbers beside it."""
    sink = -math.inf if layer.sinks is None else float(layer.sinks[head])
    return math.isinf(sink) or abs(sink) < FAR


def _logits(q: Elements, k: Elements, head: int, request: Request, step: Step) -> Elements:
    """[q, keys], before the softmax and without visibility."""
    layer = step.layer
    scores = algebra.multiply(algebra.dot(q, k.transpose()), _number(layer.scale))
    if layer.logits_soft_cap is not None:
        cap = _number(layer.logits_soft_cap)
        scores = algebra.multiply(algebra.tanh(algebra.divide(scores, cap)), cap)
    for bias in _biases(head, request, step, layer):
        scores = algebra.add(scores, _block(bias.nan_to_num(neginf=0.0)))
    return scores


def _biases(head: int, request: Request, step: Step, layer: Layer) -> Iterator[torch.Tensor]:
    """[q, keys] float64 each: what is added to the logits of a head."""
    key_positions = torch.arange(len(request.key), device=request.query.device)
    if layer.alibi_slopes is not None:
        yield alibi(request.query_positions, key_positions, layer.alibi_slopes[head : head + 1].double())[0]
    if step.batch.qq_bias is not None:
        yield place_qq_bias(request.query_positions, key_positions, step.batch, request.index).double()


def _number(number: float) -> Elements:
    return elements.of_floats(np.array([number]))


def _block(tensor: torch.Tensor) -> Elements:
    return elements.of_floats(tensor.detach().cpu().numpy())


def _value(block: Elements) -> np.ndarray:
    assert block.value is not None
    return block.value
