"""Mistakes in logits: the scale, the soft cap, ALiBi, biases between drafts, and sinks."""

import math
from collections.abc import Callable
from typing import Any

import torch
from attn_fuzz.mistakes.mistake import Change, about, lost, mistake, rule
from attn_fuzz.mistakes.part import Part
from attn_reference import attend
from attn_reference.logits import soft_cap

LOG2_E = math.log2(math.e)
Cap = Callable[[torch.Tensor, torch.Tensor, float, float], torch.Tensor]
"""Logits of scores, biases, the cap and the scale."""


def _scale(change: Callable[[float, Part], float]) -> Change:
    return rule("scale", change)


def _sinks(change: Callable[[torch.Tensor, Part], torch.Tensor]) -> Change:
    return rule("sinks", lambda sinks, part: change(sinks.float(), part).contiguous())


def _several(count: int) -> Change:
    return _sinks(lambda sinks, part: sinks + math.log(count))


def _slopes(change: Callable[[torch.Tensor, Part], torch.Tensor]) -> Change:
    return rule("alibi_slopes", lambda slopes, part: change(slopes, part).contiguous())


def _alibi(distance: Callable[[Part], torch.Tensor]) -> Change:
    """ALiBi with other distances: `distance(part)` times the slope is subtracted."""

    def changed(part: Part) -> Part | None:
        slopes = part.layer.alibi_slopes
        if slopes is None:
            return None
        return part.adding(slopes.double()[:, None, None] * ((part.j - part.p).abs() - distance(part)))

    return changed


def _cap(wanted: Cap) -> Change:
    """A change that gives a part with a soft cap the logits of `wanted`."""

    def changed(part: Part) -> Part | None:
        cap, scale = part.layer.logits_soft_cap, part.layer.scale
        return None if cap is None else part.with_logits(lambda scores, bias: wanted(scores, bias, cap, scale))

    return changed


def _cap_after_mask(size: int) -> Change:
    """Hidden keys have the logit -cap, and so have keys of 0 past the end, up to the next multiple of a size."""

    def changed(part: Part) -> Part | None:
        cap, more = part.layer.logits_soft_cap, -len(part.request.key) % size
        if cap is None:
            return None
        seen = torch.nn.functional.pad(part.request.visible, (0, more))
        longer = part.with_zeros(more).having(visible=torch.ones_like(seen))
        return longer.with_logits(lambda scores, bias: torch.where(seen, soft_cap(scores, cap), -cap) + bias)

    return changed


def _sinks_not_in_lse(part: Part) -> Part | None:
    if part.layer.sinks is None:
        return None
    without = attend(part.request, part.ruled(layer={"sinks": None}).layer).lse.T
    return part.resulting(lambda out, lse: (out, without))


def _without_rope_dims(part: Part) -> Part | None:
    width, size = part.layer.v_head_size, part.layer.head_size
    return part.having(query=part.request.query * (torch.arange(size) < width)) if width < size else None


def _q_scale(wanted: Callable[[torch.Tensor, Part], torch.Tensor]) -> Change:
    """Float8 queries with the factors [H] that `wanted` gives in place of their scales [H]."""

    def changed(part: Part) -> Part | None:
        layer = part.layer
        if layer.q_scale is None:
            return None
        scales = layer.q_scale.double().expand(layer.num_kv_heads)
        own = scales.repeat_interleave(layer.num_heads // layer.num_kv_heads)
        return part.having(query=part.request.query * (wanted(own, part) / own)[:, None])

    return changed


def _of_kv_head(of_heads: torch.Tensor, part: Part) -> torch.Tensor:
    return of_heads[torch.arange(len(of_heads)) // (len(of_heads) // part.layer.num_kv_heads)]


_OF_HEADS: dict[str, tuple[str, Any]] = {"sink": ("sinks", _sinks), "slope": ("alibi_slopes", _slopes)}
_OF_BASE_2: dict[str, tuple[str, Callable[[float], Change]]] = {
    "q.k": ("scale", lambda factor: _scale(lambda scale, part: scale * factor)),
    "the sinks": ("sinks", lambda factor: _sinks(lambda sinks, part: sinks * factor)),
    "ALiBi": ("alibi_slopes", lambda factor: _slopes(lambda slopes, part: slopes * factor)),
    "qq_bias": ("qq_bias", lambda factor: rule("qq_bias", lambda bias, part: bias * factor)),
}

MISTAKES = (
    *about(
        "sinks",
        mistake("the sinks are dropped", lost("sinks")),
        mistake("the sinks are counted twice", _several(2)),
        mistake(
            "the sinks are counted several times, perhaps once for each split", *(_several(count) for count in range(2, 33))
        ),
        mistake("the sinks are multiplied by the scale", _sinks(lambda sinks, part: sinks * part.layer.scale)),
        mistake("the LSE leaves the sinks out", _sinks_not_in_lse),
    ),
    *about(
        "scale",
        mistake("the scale is left out", _scale(lambda scale, part: 1.0)),
        mistake("the scale is head_size ** -0.5 and not the layer's", _scale(lambda scale, part: part.layer.head_size**-0.5)),
        mistake(
            "the scale is the width of V ** -0.5 and not the layer's", _scale(lambda scale, part: part.layer.v_head_size**-0.5)
        ),
        mistake(
            "the scale is a number of heads ** -0.5 and not the layer's",
            _scale(lambda scale, part: part.layer.num_heads**-0.5),
            _scale(lambda scale, part: part.layer.num_kv_heads**-0.5),
        ),
        mistake("the scale is applied twice", _scale(lambda scale, part: scale * scale)),
        mistake("the sign of the scale is lost", _scale(lambda scale, part: abs(scale))),
    ),
    *about(
        "head_size_v",
        mistake("the dims of K after V are left out of the logits", _without_rope_dims),
    ),
    *about(
        "logits_soft_cap",
        mistake("the soft cap is lost", lost("logits_soft_cap")),
        mistake(
            "the soft cap comes after the mask: hidden keys have the logit -cap",
            *(_cap_after_mask(size) for size in (1, 16, 32, 64, 128)),
        ),
        mistake("the soft cap comes after the biases", _cap(lambda scores, bias, cap, scale: soft_cap(scores + bias, cap))),
        mistake(
            "the soft cap comes before the scale",
            _cap(lambda scores, bias, cap, scale: scale * soft_cap(scores / (scale or 1.0), cap) + bias),
        ),
        mistake(
            "the soft cap is applied to logits of base 2",
            _cap(lambda scores, bias, cap, scale: soft_cap(scores * LOG2_E, cap) / LOG2_E + bias),
        ),
        mistake("the soft cap clamps", _cap(lambda scores, bias, cap, scale: scores.clamp(-cap, cap) + bias)),
    ),
    *about(
        "q_scale",
        mistake("q_scale is left out", _q_scale(lambda scales, part: torch.ones_like(scales))),
        mistake("q_scale is applied twice", _q_scale(lambda scales, part: scales * scales)),
        mistake("q is divided by q_scale instead of multiplied", _q_scale(lambda scales, part: 1 / scales)),
        mistake("q has the q_scale of the first head", _q_scale(lambda scales, part: scales[:1].expand_as(scales))),
        mistake(
            "q has the q_scale of the KV head after it",
            _q_scale(lambda scales, part: scales.roll(-(part.layer.num_heads // part.layer.num_kv_heads))),
        ),
        mistake("q is read as the other e4m3 type", *(_q_scale(lambda scales, part, f=f: scales * f) for f in (0.5, 2.0))),
    ),
    *about(
        "alibi_slopes",
        mistake("ALiBi is lost", lost("alibi_slopes")),
        mistake(
            "ALiBi's distance is one too large",
            _alibi(lambda part: (part.j - part.p).abs() + 1),
            _alibi(lambda part: (part.j - part.p - 1).abs()),
        ),
        mistake(
            "ALiBi's distance is one too small",
            _alibi(lambda part: (part.j - part.p).abs() - 1),
            _alibi(lambda part: (part.j - part.p + 1).abs()),
        ),
        mistake("ALiBi's distance has a sign: keys ahead are favoured", _alibi(lambda part: part.p - part.j)),
        mistake("ALiBi is slope * j, anchored at the first key and not at the query", _alibi(lambda part: -part.j)),
        mistake(
            "ALiBi is anchored at the end of the context and not at the query",
            *(_alibi(lambda part, before=before: part.context_len - before - part.j) for before in (0, 1)),
        ),
        mistake("ALiBi is anchored at the last key and not at the query", _alibi(lambda part: part.seq_len - 1 - part.j)),
        mistake("ALiBi has the other sign", _slopes(lambda slopes, part: -slopes)),
        mistake("ALiBi is multiplied by the scale", _slopes(lambda slopes, part: slopes * part.layer.scale)),
    ),
    *about(
        "qq_bias",
        mistake("the bias between the step's own tokens (qq_bias) is lost", lost("qq_bias")),
        mistake("qq_bias is read with queries and keys exchanged", rule("qq_bias", lambda bias, part: bias.T.contiguous())),
        mistake(
            "a qq_bias of -inf does not hide its key", rule("qq_bias", lambda bias, part: torch.where(bias.isinf(), 0.0, bias))
        ),
    ),
    *(
        each
        for noun, (name, of) in _OF_HEADS.items()
        for words, change in (
            ("of the first head", lambda values, part: values[:1].expand_as(values)),
            ("at its KV head's index", _of_kv_head),
            ("of the head after it", lambda values, part: values.roll(-1)),
        )
        for each in about(name, mistake(f"a query head has the {noun} {words}", of(change)))
    ),
    *(
        each
        for noun, (name, of) in _OF_BASE_2.items()
        for words, factor in (
            ("log2(e) is missing in a softmax of base 2", 1 / LOG2_E),
            ("log2(e) is a factor once too often", LOG2_E),
        )
        for each in about(name, mistake(f"{noun}: {words}", of(factor)))
    ),
)
