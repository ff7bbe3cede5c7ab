"""The AttentionConfig of a case, by which a backend is selected."""

from attn_contract import AttentionConfig
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
