"""Mistakes in results: the base of the LSE, the scale of the output, rows and heads at other places, and casts."""

from typing import Any

import torch
from attn_fuzz.explain.part import Outputs, Part
from attn_fuzz.explain.variants.logits import LOG2_E
from attn_fuzz.explain.variants.variant import Change, Variant
from attn_reference import attend


def _resulting(outputs: Outputs, needs: Any = lambda part: True) -> Change:
    return lambda part: part.resulting(outputs) if needs(part) else None


def _output_scale(power: int) -> Change:
    """The output times its scale to a power."""

    def changed(part: Part) -> Part | None:
        scale = part.layer.output_scale
        return None if scale is None else part.resulting(lambda out, lse: (out * scale.double() ** power, lse))

    return changed


def _not_divided(part: Part) -> Part | None:
    state = attend(part.request, part.layer)
    largest = torch.where(part.request.visible, state.logits, -torch.inf).amax(-1) if state.logits.shape[-1] else state.lse
    factor = torch.exp(state.lse - largest).nan_to_num(0).T[..., None]
    return part.resulting(lambda out, lse: (out * factor, lse))


def _cast(dtype: torch.dtype, *, query: bool = False, keys: bool = False) -> Change:
    """q, or K and V, rounded to a dtype first."""

    def changed(part: Part) -> Part | None:
        request, layer = part.request, part.layer
        narrow = [x.to(dtype).double() for x in (request.query * layer.scale, request.key, request.value)]
        if query:
            return part.having(query=narrow[0]).ruled(layer={"scale": 1.0}) if layer.scale else None
        return part.having(key=narrow[1], value=narrow[2]) if keys else None

    return changed


def _first_row(out: torch.Tensor, lse: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return out[:1].expand_as(out), lse[:1].expand_as(lse)


def _has_rows(part: Part) -> bool:
    return len(part.request.query) > 1


VARIANTS = (
    Variant.of("lse-base-2", "the LSE is a logarithm of base 2", _resulting(lambda out, lse: (out, lse * LOG2_E))),
    Variant.of(
        "lse-times-ln2", "the LSE is multiplied by ln(2) once too often", _resulting(lambda out, lse: (out, lse / LOG2_E))
    ),
    Variant.of("lse-negated", "the LSE has the other sign", _resulting(lambda out, lse: (out, -lse))),
    Variant.of(
        "lse-of-next-head",
        "the LSE of a head is that of the head behind it",
        _resulting(lambda out, lse: (out, lse.roll(-1, 1))),
    ),
    Variant.of("rows-first", "every row has the result of the request's first row", _resulting(_first_row, _has_rows)),
    Variant.of(
        "rows-before",
        "a row has the result of the row before it",
        _resulting(lambda out, lse: (out.roll(1, 0), lse.roll(1, 0)), _has_rows),
    ),
    Variant.of(
        "rows-behind",
        "a row has the result of the row behind it",
        _resulting(lambda out, lse: (out.roll(-1, 0), lse.roll(-1, 0)), _has_rows),
    ),
    Variant.of(
        "rows-reversed",
        "the rows of a request are in the reverse order",
        _resulting(lambda out, lse: (out.flip(0), lse.flip(0)), _has_rows),
    ),
    Variant.of(
        "heads-of-output-reversed",
        "the heads of the output are in the reverse order",
        _resulting(lambda out, lse: (out.flip(1), lse.flip(1))),
    ),
    Variant.of(
        "head-of-output-behind",
        "a head has the result of the head behind it",
        _resulting(lambda out, lse: (out.roll(-1, 1), lse.roll(-1, 1))),
    ),
    Variant.of(
        "head-of-output-first",
        "all heads have the result of the first one",
        _resulting(lambda out, lse: (out[:, :1].expand_as(out), lse[:, :1].expand_as(lse))),
    ),
    Variant.of("output-scale-lost", "the output is not divided by output_scale", _output_scale(1)),
    Variant.of("output-scale-twice", "the output is divided by output_scale twice", _output_scale(-1)),
    Variant.of("output-times-scale", "the output is multiplied by output_scale instead of divided", _output_scale(2)),
    Variant.of("output-0", "the output is 0, as if no key were seen", _resulting(lambda out, lse: (0 * out, lse))),
    Variant.of("output-not-divided", "the output is not divided by the sum of the weights", _not_divided),
    Variant.of("output-doubled", "the output is twice what it must be", _resulting(lambda out, lse: (2 * out, lse))),
    Variant.of("query-bfloat16", "q times the scale is rounded to bfloat16", _cast(torch.bfloat16, query=True)),
    Variant.of("query-float16", "q times the scale is rounded to float16", _cast(torch.float16, query=True)),
    Variant.of("keys-bfloat16", "K and V are rounded to bfloat16", _cast(torch.bfloat16, keys=True)),
    Variant.of("keys-float16", "K and V are rounded to float16", _cast(torch.float16, keys=True)),
    Variant.of("keys-float8", "K and V are rounded to float8 without a scale", _cast(torch.float8_e4m3fn, keys=True)),
)
