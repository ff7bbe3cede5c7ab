"""Mistakes in logits: the scale, the soft cap, ALiBi, biases between drafts, and sinks."""

import math
from typing import Any

import torch
from attn_fuzz.explain.part import Part
from attn_fuzz.explain.variants.variant import Change, Variant
from attn_reference import attend
from attn_reference.logits import soft_cap

LOG2_E = math.log2(math.e)


def _scale(change: Any) -> Change:
    """Another scale: `change(scale, layer)`."""

    def changed(part: Part) -> Part | None:
        scale = change(part.layer.scale, part.layer)
        return None if scale == part.layer.scale else part.ruled(layer={"scale": scale})

    return changed


def _padded(size: int) -> int:
    return 1 << (size - 1).bit_length()


def _without_rope_dims(part: Part) -> Part | None:
    width = part.layer.value_size
    if width >= part.layer.head_size:
        return None
    return part.having(query=part.request.query * (torch.arange(part.layer.head_size) < width).to(part.request.query))


def _cap(wanted: Any) -> Change:
    """With a soft cap: the logits that `wanted(scores, bias, cap, part)` gives."""

    def changed(part: Part) -> Part | None:
        cap = part.layer.logits_soft_cap
        return None if cap is None else part.with_logits(lambda scores, bias: wanted(scores, bias, cap, part))

    return changed


def _cap_after_mask(size: int) -> Change:
    """Hidden keys have the logit -cap, and so have keys of 0 past the end, up to the next multiple of a size."""

    def changed(part: Part) -> Part | None:
        cap = part.layer.logits_soft_cap
        if cap is None:
            return None
        more = -len(part.request.key) % size
        key, value = (
            torch.cat([x.nan_to_num(0, 0, 0), x.new_zeros(more, *x.shape[1:])]) for x in (part.request.key, part.request.value)
        )
        seen = torch.nn.functional.pad(part.request.visible, (0, more))
        longer = part.longer(key, value).having(visible=torch.ones_like(seen))
        return longer.with_logits(lambda scores, bias: torch.where(seen, soft_cap(scores, cap), -cap) + bias)

    return changed


def _alibi(distance: Any) -> Change:
    """ALiBi with other distances: `distance(part)` is subtracted, times the slope."""

    def changed(part: Part) -> Part | None:
        slopes = part.layer.alibi_slopes
        if slopes is None:
            return None
        right = (part.j - part.p).abs()
        return part.adding(slopes.double()[:, None, None] * (right - distance(part)))

    return changed


def _slopes(change: Any) -> Change:
    """ALiBi with the slopes that `change(slopes, layer)` gives."""

    def changed(part: Part) -> Part | None:
        slopes = part.layer.alibi_slopes
        if slopes is None:
            return None
        other = change(slopes.double(), part.layer)
        return part.adding((slopes.double() - other)[:, None, None] * (part.j - part.p).abs())

    return changed


def _qq_bias(change: Any) -> Change:
    """Another bias between the step's own tokens: `change(bias)`."""

    def changed(part: Part) -> Part | None:
        bias = part.batch.qq_bias
        return None if bias is None else part.ruled(batch={"qq_bias": change(bias)})

    return changed


def _sinks(change: Any) -> Change:
    """Other sinks: `change(sinks, part)`."""

    def changed(part: Part) -> Part | None:
        sinks = part.layer.sinks
        return None if sinks is None else part.ruled(layer={"sinks": change(sinks.float(), part)})

    return changed


def _kv_heads(layer: Any) -> torch.Tensor:
    """[H], the KV head of each query head."""
    return torch.arange(layer.num_heads) // (layer.num_heads // layer.num_kv_heads)


def _sinks_not_in_lse(part: Part) -> Part | None:
    if part.layer.sinks is None:
        return None
    without = attend(part.request, part.ruled(layer={"sinks": None}).layer).lse.T
    return part.resulting(lambda out, lse: (out, without))


def _times(number: float) -> Any:
    return lambda sinks, part: sinks + math.log(number)


VARIANTS = (
    Variant.of(
        "sinks-lost",
        "the sinks are dropped",
        lambda part: part.ruled(layer={"sinks": None}) if part.layer.sinks is not None else None,
    ),
    Variant.of("sinks-twice", "the sinks are counted twice", _sinks(_times(2))),
    Variant.of(
        "sinks-several-times",
        "the sinks are counted several times, perhaps once for each split",
        *(_sinks(_times(n)) for n in range(2, 33)),
    ),
    Variant.of("sinks-scaled", "the sinks are multiplied by the scale", _sinks(lambda sinks, part: sinks * part.layer.scale)),
    Variant.of("sinks-base-2", "the sinks are taken for logarithms of base 2", _sinks(lambda sinks, part: sinks / LOG2_E)),
    Variant.of(
        "sinks-times-log2e", "the sinks are multiplied by log2(e) once too often", _sinks(lambda sinks, part: sinks * LOG2_E)
    ),
    Variant.of("sinks-negated", "the sinks have the other sign", _sinks(lambda sinks, part: -sinks)),
    Variant.of(
        "sinks-of-first-head", "all heads have the first head's sink", _sinks(lambda sinks, part: sinks[:1].expand_as(sinks))
    ),
    Variant.of(
        "sinks-of-kv-head",
        "a query head has the sink at its KV head's index",
        _sinks(lambda sinks, part: sinks[_kv_heads(part.layer)]),
    ),
    Variant.of("sinks-of-next-head", "a head has the sink of the head behind it", _sinks(lambda sinks, part: sinks.roll(-1))),
    Variant.of("sinks-of-head-before", "a head has the sink of the head before it", _sinks(lambda sinks, part: sinks.roll(1))),
    Variant.of("sinks-not-in-lse", "the LSE leaves the sinks out", _sinks_not_in_lse),
    Variant.of("scale-lost", "the scale is left out", _scale(lambda scale, layer: 1.0)),
    Variant.of(
        "scale-of-head-size",
        "the scale is head_size ** -0.5 and not the layer's",
        _scale(lambda scale, layer: layer.head_size**-0.5),
    ),
    Variant.of(
        "scale-of-value-size",
        "the scale is the width of V ** -0.5 and not the layer's",
        _scale(lambda scale, layer: layer.value_size**-0.5),
    ),
    Variant.of(
        "scale-of-padded-size",
        "the scale is that of the head size padded to a power of two",
        _scale(lambda scale, layer: _padded(layer.head_size) ** -0.5),
    ),
    Variant.of("scale-twice", "the scale is applied twice", _scale(lambda scale, layer: scale * scale)),
    Variant.of("scale-magnitude", "the sign of the scale is lost", _scale(lambda scale, layer: abs(scale))),
    Variant.of("scale-base-2", "log2(e) is missing in a softmax of base 2", _scale(lambda scale, layer: scale / LOG2_E)),
    Variant.of(
        "scale-times-log2e", "logits are multiplied by log2(e) once too often", _scale(lambda scale, layer: scale * LOG2_E)
    ),
    Variant.of("scale-0", "the logits of q.k are 0", _scale(lambda scale, layer: 0.0)),
    Variant.of("rope-dims-lost", "the dims of K behind V are left out of the logits", _without_rope_dims),
    Variant.of("cap-lost", "the soft cap is lost", _cap(lambda scores, bias, cap, part: scores + bias)),
    Variant.of(
        "cap-after-mask",
        "the soft cap comes after the mask: hidden keys have the logit -cap",
        *(_cap_after_mask(t) for t in (1, 16, 32, 64, 128)),
    ),
    Variant.of(
        "cap-after-bias",
        "the soft cap comes after the biases",
        _cap(lambda scores, bias, cap, part: soft_cap(scores + bias, cap)),
    ),
    Variant.of(
        "cap-before-scale",
        "the soft cap comes before the scale",
        _cap(lambda scores, bias, cap, part: part.layer.scale * soft_cap(scores / (part.layer.scale or 1.0), cap) + bias),
    ),
    Variant.of(
        "cap-twice",
        "the soft cap is applied twice",
        _cap(lambda scores, bias, cap, part: soft_cap(soft_cap(scores, cap), cap) + bias),
    ),
    Variant.of(
        "cap-unscaled",
        "the capped logits are not multiplied by the cap",
        _cap(lambda scores, bias, cap, part: soft_cap(scores, cap) / cap + bias),
    ),
    Variant.of(
        "cap-base-2",
        "the soft cap is applied to logits of base 2",
        _cap(lambda scores, bias, cap, part: soft_cap(scores * LOG2_E, cap) / LOG2_E + bias),
    ),
    Variant.of(
        "cap-clamps",
        "the soft cap clamps instead of tanh",
        _cap(lambda scores, bias, cap, part: scores.clamp(-cap, cap) + bias),
    ),
    Variant.of("alibi-lost", "ALiBi is lost", _alibi(lambda part: 0 * part.j)),
    Variant.of("alibi-1-more", "ALiBi's distance is one too large", _alibi(lambda part: (part.j - part.p).abs() + 1)),
    Variant.of("alibi-1-less", "ALiBi's distance is one too small", _alibi(lambda part: (part.j - part.p).abs() - 1)),
    Variant.of(
        "alibi-signed",
        "ALiBi's distance has a sign: keys ahead of the query are favoured",
        _alibi(lambda part: part.p - part.j),
    ),
    Variant.of(
        "alibi-from-0", "ALiBi is slope * j, anchored at the first key and not at the query", _alibi(lambda part: -part.j)
    ),
    Variant.of(
        "alibi-from-end",
        "ALiBi is anchored at the last key and not at the query",
        _alibi(lambda part: part.seq_len - 1 - part.j),
    ),
    Variant.of(
        "alibi-from-context",
        "ALiBi is anchored at the end of the context and not at the query",
        _alibi(lambda part: part.context_len - part.j),
    ),
    Variant.of(
        "alibi-from-before-context",
        "ALiBi is anchored at the last key of the context and not at the query",
        _alibi(lambda part: part.context_len - 1 - part.j),
    ),
    Variant.of(
        "alibi-abs-from-context",
        "ALiBi's distance is that to the end of the context",
        _alibi(lambda part: (part.context_len - part.j).abs()),
    ),
    Variant.of(
        "alibi-top-left",
        "ALiBi takes the query's place in the step for its position",
        _alibi(lambda part: (part.p - part.context_len - part.j).abs()),
    ),
    Variant.of("alibi-negated", "ALiBi has the other sign", _alibi(lambda part: -(part.j - part.p).abs())),
    Variant.of(
        "alibi-base-2", "log2(e) is missing in ALiBi of a softmax of base 2", _slopes(lambda slopes, layer: slopes / LOG2_E)
    ),
    Variant.of(
        "alibi-times-log2e", "ALiBi is multiplied by log2(e) once too often", _slopes(lambda slopes, layer: slopes * LOG2_E)
    ),
    Variant.of("alibi-scaled", "ALiBi is multiplied by the scale", _slopes(lambda slopes, layer: slopes * layer.scale)),
    Variant.of(
        "alibi-of-kv-head",
        "a query head has the slope at its KV head's index",
        _slopes(lambda slopes, layer: slopes[_kv_heads(layer)]),
    ),
    Variant.of(
        "alibi-of-first-head",
        "all heads have the first head's slope",
        _slopes(lambda slopes, layer: slopes[:1].expand_as(slopes)),
    ),
    Variant.of(
        "alibi-of-next-head", "a head has the slope of the head behind it", _slopes(lambda slopes, layer: slopes.roll(-1))
    ),
    Variant.of(
        "alibi-of-head-before", "a head has the slope of the head before it", _slopes(lambda slopes, layer: slopes.roll(1))
    ),
    Variant.of(
        "qq-bias-lost",
        "the bias between the step's own tokens (qq_bias) is lost",
        lambda part: part.ruled(batch={"qq_bias": None}) if part.batch.qq_bias is not None else None,
    ),
    Variant.of(
        "qq-bias-transposed", "qq_bias is read with queries and keys exchanged", _qq_bias(lambda bias: bias.T.contiguous())
    ),
    Variant.of(
        "qq-bias-not-hiding",
        "a qq_bias of -inf does not hide its key",
        _qq_bias(lambda bias: torch.where(bias.isinf(), 0.0, bias)),
    ),
    Variant.of(
        "qq-bias-only-hides",
        "qq_bias hides keys, and its finite numbers are lost",
        _qq_bias(lambda bias: torch.where(bias.isinf(), bias, 0.0)),
    ),
    Variant.of("qq-bias-base-2", "log2(e) is missing in qq_bias of a softmax of base 2", _qq_bias(lambda bias: bias / LOG2_E)),
)
