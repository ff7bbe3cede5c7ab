"""Mistakes in results: the base of the LSE, the scale of the output, rows and heads at other places, and casts."""

import torch
from attn_fuzz.mistakes.logits import LOG2_E
from attn_fuzz.mistakes.mistake import Change, about, mistake
from attn_fuzz.mistakes.part import Outputs, Part
from attn_reference import attend


def _then(outputs: Outputs) -> Change:
    return lambda part: part.resulting(outputs)


def _moved(shift: int, dim: int) -> Change:
    """Rows (dim 0) or heads (dim 1) have each other's results."""
    return _then(lambda out, lse: (out.roll(shift, dim), lse.roll(shift, dim)))


def _first_of(dim: int) -> Change:
    return _then(lambda out, lse: (out.narrow(dim, 0, 1).expand_as(out), lse.narrow(dim, 0, 1).expand_as(lse)))


def _rows_of_q(shift: int) -> Change:
    """The queries lie `shift` rows further on in q."""

    def changed(part: Part) -> Part | None:
        q, rows = part.call.q, part.request.rows
        if part.layer.q_scale is not None or rows.start + shift < 0 or rows.stop + shift > len(q):
            return None
        return part.having(query=q[rows.start + shift : rows.stop + shift].reshape(part.request.query.shape).double())

    return changed


def _output_scale(power: int) -> Change:
    """The output times its scale to a power."""

    def changed(part: Part) -> Part | None:
        scale = part.layer.output_scale
        return None if scale is None else part.resulting(lambda out, lse: (out * scale.double() ** power, lse))

    return changed


def _not_divided(part: Part) -> Part | None:
    state = attend(part.request, part.layer)
    if not state.logits.shape[-1]:
        return None
    largest = torch.where(part.request.visible, state.logits, -torch.inf).amax(-1)
    sums = torch.exp(state.lse - largest).nan_to_num(0).T[..., None]
    return part.resulting(lambda out, lse: (out * sums, lse))


def _query(dtype: torch.dtype) -> Change:
    """q times the scale, rounded to a dtype."""
    return lambda part: part.having(query=(part.request.query * part.layer.scale).to(dtype).double()).ruled(
        layer={"scale": 1.0}
    )


def _keys(dtype: torch.dtype) -> Change:
    return lambda part: part.having(key=part.request.key.to(dtype).double(), value=part.request.value.to(dtype).double())


OF_LSE = about(
    "lse",
    mistake("the LSE is a logarithm of base 2", _then(lambda out, lse: (out, lse * LOG2_E))),
    mistake("the LSE is multiplied by ln(2) once too often", _then(lambda out, lse: (out, lse / LOG2_E))),
    mistake("the LSE has the other sign", _then(lambda out, lse: (out, -lse))),
    mistake("the LSE of a head is that of the head after it", _then(lambda out, lse: (out, lse.roll(-1, 1)))),
    mistake("the LSE is written with rows and heads exchanged", _then(lambda out, lse: (out, lse.reshape(lse.T.shape).T))),
)
MISTAKES = (
    *OF_LSE,
    *about(
        "rows and heads",
        mistake("every row has the result of the request's first row", _first_of(0)),
        mistake("a row has the result of the row before it", _moved(1, 0)),
        mistake("a row has the result of the row after it", _moved(-1, 0)),
        mistake("q is read one row further, beyond the request's last", _rows_of_q(1)),
        mistake("q is read one row before, from that of the request before it on", _rows_of_q(-1)),
        mistake("all heads have the result of the first one", _first_of(1)),
        mistake("a head has the result of the head after it", _moved(-1, 1)),
    ),
    *about(
        "output_scale",
        mistake("the output is not divided by output_scale", _output_scale(1)),
        mistake("the output is divided by output_scale twice", _output_scale(-1)),
        mistake("the output is multiplied by output_scale instead of divided", _output_scale(2)),
    ),
    *about(
        "softmax",
        mistake("the output is 0", _then(lambda out, lse: (0 * out, lse))),
        mistake("the output is not divided by the sum of the weights", _not_divided),
    ),
    *about(
        "rounding",
        mistake("q times the scale is rounded to 16 bits", _query(torch.bfloat16), _query(torch.float16)),
        mistake("K and V are rounded to 16 bits", _keys(torch.bfloat16), _keys(torch.float16)),
    ),
)
