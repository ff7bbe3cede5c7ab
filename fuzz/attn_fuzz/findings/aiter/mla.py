"""Bugs in AITER's Triton kernels of latent attention."""

from attn_contract import AttentionConfig
from attn_fuzz.findings.aiter.shared import has_holes, in_wheel
from attn_fuzz.findings.finding import WRONG, failures_where, is_nan

_SPARSE_MLA = "aiter/ops/triton/_triton_kernels/unified_attention_sparse_mla.py, _kernel_unified_attention_sparse_mla_2d"


def _is_latent(config: AttentionConfig) -> bool:
    return config.has_latent_cache


MLA_DECODE_ROPE = (
    in_wheel(
        name="aiter-mla-rope-past-row",
        what="With use_rope, where the number of dims after the latent ones is no power of two, dims past the row of a "
        "request's last key are read, and a NaN in them makes the output NaN.",
        cause="aiter/ops/triton/_triton_kernels/mla_decode_rope.py, _fwd_grouped_kernel_stage1_rope: k_pe_last_token and "
        "k_pe_rot_last_token are loaded without a mask, BLOCK_R dims of each; q is 0 in those past the row, and 0 * NaN is "
        "NaN.",
        meets=_is_latent,
        explains=lambda case, verdict: (
            (is_nan(case, verdict) or verdict.kind == "sanitizer")
            # an earlier call may have rows of another width
            and ((case.head_size - case.v_head_size).bit_count() > 1 or "head_size_v" in case.earlier)
        ),
    ),
)
SPARSE_MLA = (
    in_wheel(
        name="aiter-sparse-mla-heads",
        what="Query heads after the last multiple of 16 are never computed; with fewer than 16 no head is.",
        cause="aiter/ops/triton/unified_attention_sparse_mla.py, unified_attention_sparse_mla: the grid has "
        "num_query_heads // 16 programs for each row of q, and no check refuses what is left over.",
        meets=lambda config: _is_latent(config) and config.num_heads % 16 != 0,
        explains=failures_where(("unwritten",), lambda case: case.group_size % 16 != 0),
    ),
    in_wheel(
        name="aiter-sparse-mla-hidden-tile",
        what="A row whose first tile of chosen indices is all -1 loses its weights where its logits are negative: it is 0, "
        "less exact, infinite or NaN.",
        cause=f"{_SPARSE_MLA}: after a tile without a key the running maximum is 0 instead of -inf, and weights are taken "
        "relative to it.",
        meets=_is_latent,
        explains=failures_where(WRONG, has_holes),
    ),
)
