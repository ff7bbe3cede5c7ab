"""Changes that leave the softmax as it is: a shift of all keys, and a factor that moves from the scale into q."""

import dataclasses

import torch
from attn_contract.layer import SMALLEST_NORMAL
from attn_fuzz.cases.tensors import Step
from attn_fuzz.properties import rules
from attn_fuzz.properties.relation import CallTarget, ErrorBound, Outputs, close, relation, same_bits, variant
from attn_fuzz.properties.slots import has_latent_value, rows_of_slots, slots_of_keys, with_rows

# Keys are rounded to multiples of a power of two divided by LEVELS. Then rounded and shifted keys have six significant bits,
# and every dtype can hold them.
LEVELS = 32


@relation(
    "shifted keys",
    says="The same vector c added to all keys of a head changes no output, and adds scale * q.c to the LSE.",
    rules=rules.SHIFTED,
    applies="all but quantized and latent caches",
)
def shifted_keys(step: Step, call_target: CallTarget, error: ErrorBound) -> str | None:
    layer = step.layer
    if layer.kv_cache_dtype is not None or has_latent_value(step):
        return None
    k, is_key = rows_of_slots(step)[0], slots_of_keys(step)[:, None, None]
    magnitudes = torch.where(is_key & k.isfinite(), k, 0).abs()
    if not magnitudes.any():
        return None
    spacing = torch.exp2(torch.ceil(torch.log2(magnitudes.max().double()))) / LEVELS
    heads, channels = (torch.arange(size, device=k.device) for size in k.shape[1:])
    shift = spacing * (1 + (heads[:, None] * 3 + channels * 5) % (LEVELS // 2))
    coarse = torch.round(k.double() / spacing) * spacing
    plain, shifted = (
        variant(step, call_target, **with_rows(step, k=torch.where(is_key, keys, k.double()).to(k.dtype)))
        for keys in (coarse, coarse + shift)
    )
    allowed = error(plain) + error(shifted)
    expected = Outputs.read(plain)
    if expected.lse is not None:
        q = step.q[: len(expected.lse)].double().unflatten(1, (layer.num_kv_heads, -1))
        expected = dataclasses.replace(
            expected, lse=expected.lse + layer.scale * torch.einsum("qngd,nd->qng", q, shift).flatten(1)
        )
    return close(expected, Outputs.read(shifted), allowed)


@relation(
    "scale in q",
    says="Queries times 4 (by q_scale, if they are float8) and a quarter of the scale give the same output.",
    rules=rules.PRODUCT_OF_SCALE,
    applies="scales of which a quarter is a normal number, or 0",
)
def scale_in_query(step: Step, call_target: CallTarget) -> str | None:
    if 0 < abs(step.layer.scale) < 4 * SMALLEST_NORMAL:
        return None
    layer = dataclasses.replace(step.layer, scale=step.layer.scale / 4)
    if layer.q_scale is None:
        moved = variant(step, call_target, q=4 * step.q, layer=layer)
    else:
        moved = variant(step, call_target, layer=dataclasses.replace(layer, q_scale=4 * layer.q_scale))
    return same_bits(Outputs.of(step), Outputs.of(moved))
