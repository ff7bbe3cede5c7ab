"""What a case, or a call, asks of a backend."""

import torch
from attn_contract import AttentionConfig, Batch, KVCacheView, Layer
from attn_contract.attention_config import Scales
from attn_fuzz.cases.case import Case
from attn_fuzz.cases.poison import DTYPES


def config_of(case: Case) -> AttentionConfig:
    """The AttentionConfig of a case: what the case asks of its layer and of a step."""
    return AttentionConfig(
        num_heads=case.num_heads,
        num_kv_heads=case.num_kv_heads,
        head_size=case.head_size,
        dtype=DTYPES[case.dtype],
        attn_type=case.attn_type,
        block_size=case.cache.block_size if case.cache else None,
        layout=case.cache.layout if case.cache else None,
        kv_cache_dtype=DTYPES[case.cache.dtype] if case.cache and case.cache.dtype else None,
        scales=_scales_of(case),
        output_dtype=DTYPES[case.output_dtype] if case.output_dtype else None,
        rules={name: value if isinstance(value, int | float | tuple) else True for name, value in case.rules.items()},
    )


def _scales_of(case: Case) -> Scales | None:
    if case.cache is None or case.cache.dtype is None:
        return None
    if case.cache.layout.has_inline_scales:
        return "inline"
    # with a single KV head, a scale per head is a scale for all heads
    return "tensor" if case.cache.scales == "head" and case.num_kv_heads == 1 else case.cache.scales


def config_of_call(
    q: torch.Tensor,
    kv_cache: torch.Tensor | None,
    layer: Layer,
    batch: Batch,
    out: torch.Tensor,
    lse: torch.Tensor | None,
) -> AttentionConfig:
    """What a call asks for, in the layout of its cache."""
    block_size = None
    if kv_cache is not None and layer.layout is not None:
        heads = {"num_kv_heads": layer.num_kv_heads, "head_size": layer.head_size, "head_size_v": layer.head_size_v}
        block_size = KVCacheView.of(kv_cache, layer.layout, **heads).block_size
    output_dtype = out.dtype if layer.output_scale is not None else None
    return AttentionConfig.of(
        layer, q.dtype, block_size=block_size, batch=batch, output_dtype=output_dtype, lse=lse is not None, rope=False
    )
