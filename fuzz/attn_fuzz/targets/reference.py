"""The reference in float32 as a target."""

from attn_fuzz.targets.support import WITH_LATENT
from attn_fuzz.targets.target import Target
from attn_fuzz.verdict.rounding import Rounding


def _reference_attention(q, k, v, kv_cache, layer, batch, *, out, lse) -> None:
    import attn_reference

    if layer.attn_type.reads_cache:
        attn_reference.paged_attention(q, kv_cache, layer, batch, out=out, lse=lse)
    else:
        attn_reference.varlen_attention(q, k, v, layer, batch, out=out, lse=lse)


def _reference_write(k, v, kv_cache, layer, slot_mapping) -> None:
    import attn_reference

    attn_reference.write_kv_cache(k, v, kv_cache, layer, slot_mapping)


def _reference_write_latent(kv_c, k_pe, kv_cache, layer, slot_mapping) -> None:
    import attn_reference

    attn_reference.write_latent_cache(kv_c, k_pe, kv_cache, layer, slot_mapping)


def _reference_rope(q, k, v, positions, cos_sin_cache, kv_cache, layer, slot_mapping, *, is_neox) -> None:
    import attn_reference

    attn_reference.rope_and_write_kv_cache(q, k, v, positions, cos_sin_cache, kv_cache, layer, slot_mapping, is_neox=is_neox)


REFERENCE_FP32 = Target(
    name="reference-fp32",
    description="the reference in float32, judged by itself in float64: a check of the bound",
    attention=_reference_attention,
    write_kv_cache=_reference_write,
    write_latent_cache=_reference_write_latent,
    rope_and_write_kv_cache=_reference_rope,
    support=lambda device: WITH_LATENT,
    rounding=lambda device: Rounding(keys_per_tile=1024),
)
