"""The output is linear in V, and the weights sum to 1 less the sink's share."""

import dataclasses

import torch
from attn_fuzz.cases.tensors import Step
from attn_fuzz.properties import rules
from attn_fuzz.properties.relation import CallTarget, ErrorBound, Outputs, close, relation, same_bits, variant
from attn_fuzz.properties.slots import has_inline_scales, has_latent_value, replaced_scales, rows_of_slots, with_rows
from attn_fuzz.verdict.rounding import UNDERFLOW

# smaller float32 sums of products may hold subnormals, which are rounded to a fixed step or flushed to 0
MIN_SUM = 2.0**-64


@relation(
    "doubled values",
    says="V times 2 gives the output times 2.",
    rules=rules.LINEAR_IN_V,
    applies="all but caches with inline scales and latent caches; outputs above float underflow",
)
def doubled_values(step: Step, call_target: CallTarget) -> str | None:
    if has_inline_scales(step) or has_latent_value(step):
        return None
    if step.layer.kv_cache_dtype is None:
        doubled = dataclasses.replace(step, **with_rows(step, v=2 * rows_of_slots(step)[1]))
    else:
        doubled = replaced_scales(step, lambda scale: 2 * scale)
    if step.layer.output_scale is not None:  # with twice the scale, the stored numbers stay the same
        layer = dataclasses.replace(doubled.layer, output_scale=2 * step.layer.output_scale)
        doubled = dataclasses.replace(doubled, layer=layer)
    once, twice = Outputs.of(step), Outputs.of(variant(doubled, call_target))
    if step.layer.output_scale is None:
        # even the smallest normal number may be a subnormal that was rounded up
        smallest = max(float(torch.finfo(once.out.dtype).tiny), MIN_SUM)
        is_exact = (once.out.abs() > smallest) & (2 * once.out).isfinite()
        expected = torch.where(is_exact, 2 * once.out, twice.out)
        once = dataclasses.replace(once, out=expected)
    return same_bits(once, twice)


@relation(
    "additivity",
    says="If V is the sum of two tensors, the output is the sum of the outputs for each of them.",
    rules=rules.LINEAR_IN_V,
    applies="all but quantized outputs and latent caches",
)
def additivity(step: Step, call_target: CallTarget, error: ErrorBound) -> str | None:
    if step.layer.output_scale is not None or has_latent_value(step):
        return None
    v = rows_of_slots(step)[1]
    slot = torch.arange(len(v), device=v.device).view(-1, 1, 1)
    channel = torch.arange(v.shape[2], device=v.device)
    is_first = ((slot + channel) % 2 == 0).expand(v.shape)
    first, second = (
        Outputs.read(variant(step, call_target, **with_rows(step, v=torch.where(mask, v.float(), 0.0).to(v.dtype))))
        for mask in (is_first, ~is_first)
    )
    allowed = error(step)  # a bound of the parts too, because their values are no larger
    three = Outputs(3 * allowed.out, None)
    together = Outputs.read(step)
    return close(Outputs(together.out, None), Outputs(first.out + second.out, None), three)


@relation(
    "weights",
    says="With one-hot V the output is the weights: none is negative, and they sum to 1 less the sink's share.",
    rules=rules.SUMS_TO_ONE,
    applies="all but quantized outputs, caches with inline scales and latent caches; with sinks, steps with an LSE",
)
def weights(step: Step, call_target: CallTarget, error: ErrorBound) -> str | None:
    layer = step.layer
    if layer.output_scale is not None or has_inline_scales(step) or (layer.sinks is not None and step.lse is None):
        return None
    if has_latent_value(step):
        return None
    v = rows_of_slots(step)[1]
    slot = torch.arange(len(v), device=v.device).view(-1, 1, 1)
    one_hot = (slot % layer.v_head_size == torch.arange(layer.v_head_size, device=v.device)).expand(v.shape)
    units = dataclasses.replace(step, **with_rows(step, v=one_hot.to(v.dtype)))
    part = variant(replaced_scales(units, torch.ones_like), call_target)
    shares, bound = Outputs.read(part), error(part)
    negative = (shares.out < 0).any(-1)
    if negative.any():
        row, head = (int(index) for index in negative.nonzero()[0])
        return f"a weight of row {row}, head {head} is negative: {float(shares.out[row, head].min()):.9g}"
    total = shares.out.sum(-1)
    expected = (total > 0).double()  # a row that sees nothing has no weights
    if shares.lse is not None:
        sink = torch.full_like(total, -torch.inf) if layer.sinks is None else layer.sinks.double().expand(total.shape)
        lse = shares.lse.masked_fill(shares.lse.isinf(), 0.0)
        expected = torch.where(shares.lse.isinf(), 0.0, 1 - torch.exp(sink - lse))
    # apart from underflow, the errors of all channels together are at most the error of one channel that has all the weight
    allowed = bound.out.amax(-1) + layer.v_head_size * UNDERFLOW[part.out.dtype]
    if layer.sinks is not None and bound.lse is not None:
        allowed = allowed + torch.expm1(bound.lse)
    wrong = ~((total - expected).abs() <= allowed)
    if not wrong.any():
        return None
    row, head = (int(index) for index in wrong.nonzero()[0])
    numbers = f"{float(total[row, head]):.9g} instead of {float(expected[row, head]):.9g} +- {float(allowed[row, head]):.2g}"
    return f"the weights of row {row}, head {head} sum to {numbers}; {int(wrong.sum())} sums are wrong"
