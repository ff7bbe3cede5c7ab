"""Regions of the fields of Layer."""

import torch
from attn_contract import AttentionType, Layout
from attn_fuzz.cases.case import CONTENTS, Case
from attn_fuzz.cases.regions.region import (
    Region,
    idle_stride,
    illegal,
    legal,
    not_drawn,
    of_tensor,
    of_values,
    of_view,
    refused_if_not_finite,
)
from attn_fuzz.cases.tensors import Step

_OF_ANY_SIZE = "it scales a logit, and keys of extreme values draw the range of logits"


def _splits_a_window(case: Case, step: Step) -> bool:
    """Whether the interpreted kernels cut the keys inside a window that reaches beyond 65 keys into parts."""
    if case.window[0] <= 65 or not any(r.query_len and r.context_len > case.window[0] for r in case.requests):
        return False
    import attn_optimized
    from attn_optimized.device import INTERPRETER

    if case.has_latent_cache:
        return False
    return attn_optimized.plan_of(step.q, step.layer, step.batch, architecture=INTERPRETER, compute_units=1).splits > 1


def _has_two_widths(case: Case) -> bool:
    return case.cache is not None and case.head_size_v is not None and not case.has_latent_cache


def _has_odd_values(case: Case, step: Step) -> bool:
    """Whether the rows of V have pairs of dims, each of a byte, and begin at odd addresses."""
    is_odd = _has_two_widths(case) and case.head_size % 2 == 1 and case.value_size % 2 == 0
    return is_odd and case.cache is not None and case.cache.dtype is not None


def _scale_regions(name: str) -> tuple[Region, ...]:
    return (
        Region("below 1", of_tensor(name, lambda scale: (scale < 1).any())),
        Region("1 or more", of_tensor(name, lambda scale: (scale >= 1).any())),
        Region("shape ()", of_tensor(name, lambda scale: scale.dim() == 0)),
        Region("shape (1,)", of_tensor(name, lambda scale: scale.shape == (1,))),
        idle_stride(name),
        not_drawn("beyond 2^-6 to 2^4", "a factor of numbers with a few bits: another power of two changes no rounding"),
        illegal("below 2^-126, NaN, infinity", "`validation.values` refuses them: kernels divide by it"),
    )


def _is_by_heads(scales: torch.Tensor) -> bool:
    """Whether scales [NB, BS, HK] of several heads lie in memory head by head."""
    return scales.shape[2] > 1 and scales.stride(2) != 1


def _scale_cache_regions(name: str) -> tuple[Region, ...]:
    return (
        Region("dense rows of heads", of_tensor(name, lambda scales: scales.stride(2) == 1)),
        idle_stride(name),
        Region("NaN in slots without a key", of_tensor(name, lambda scales: scales.isnan().any())),
        Region("negative", of_tensor(name, lambda scales: (scales < 0).any())),
        not_drawn("0", "the product with a key is 0, as that of a key of zeros"),
    )


LAYER: dict[str, tuple[Region, ...]] = {
    "num_heads": (
        *legal(
            as_many_as_KV_heads=lambda case, step: case.group_size == 1,
            several_of_each_KV_head=lambda case, step: case.group_size > 1,
            groups_of_no_power_of_two=lambda case, step: case.group_size.bit_count() > 1,
            groups_above_16=lambda case, step: case.group_size > 16,
            more_than_a_tile_of_the_kernels_holds=lambda case, step: case.group_size > 64,
        ),
    ),
    "num_kv_heads": (
        *legal(
            _1=lambda case, step: case.num_kv_heads == 1,
            several=lambda case, step: case.num_kv_heads > 1,
            no_power_of_two=lambda case, step: case.num_kv_heads == 3,
            _8=lambda case, step: case.num_kv_heads == 8,
        ),
        not_drawn("above 8", "a KV head is a program of its own: the ninth is found as the eighth is"),
    ),
    "head_size": (
        *legal(
            a_power_of_two=lambda case, step: case.head_size.bit_count() == 1,
            no_power_of_two=lambda case, step: case.head_size.bit_count() > 1,
            rows_of_no_multiple_of_16_bytes=lambda case, step: case.head_size * step.q.element_size() % 16,
            above_128=lambda case, step: case.head_size > 128,
            odd=lambda case, step: case.head_size % 2 and not case.has_latent_cache,
        ),
        not_drawn("below 16, or above 256", "Triton's dot needs 16, to which all are padded; models have at most 256"),
    ),
    "head_size_v": (
        *legal(
            none=lambda case, step: case.head_size_v is None,
            narrower_than_dense_K=lambda case, step: case.cache is None and case.value_size < case.head_size,
            wider_than_dense_K=lambda case, step: case.cache is None and case.value_size > case.head_size,
            the_beginning_of_K=lambda case, step: case.has_latent_cache and case.value_size < case.head_size,
            all_of_K=lambda case, step: case.has_latent_cache and case.value_size == case.head_size,
            narrower_than_K_in_a_row=lambda case, step: _has_two_widths(case) and case.value_size < case.head_size,
            wider_than_K_in_a_row=lambda case, step: _has_two_widths(case) and case.value_size > case.head_size,
            _128_behind_192_of_K=lambda case, step: _has_two_widths(case) and (case.head_size, case.value_size) == (192, 128),
            in_a_row_of_encoder_keys=lambda case, step: (
                _has_two_widths(case) and case.attn_type is AttentionType.ENCODER_DECODER
            ),
            even_behind_an_odd_K_in_a_row_of_bytes=_has_odd_values,
        ),
        not_drawn("512 of 576", "sizes are arguments of one formula; targets of kernels name their own (`Support.latent`)"),
        illegal("of other caches", "Layer refuses it: no layout but CONTENT_PACKED and latent ones has two widths"),
    ),
    "scale": (
        *legal(
            positive=lambda case, step: case.scale > 0,
            _0=lambda case, step: case.scale == 0,
            negative=lambda case, step: case.scale < 0,
            near_the_least_magnitude=lambda case, step: 0 < abs(case.scale) < 2.0**-100,
        ),
        not_drawn("other magnitudes below 1e-3 or above 10", _OF_ANY_SIZE),
        illegal("subnormal, above 2^64, NaN, infinity", "Layer refuses it: kernels multiply by it"),
    ),
    "attn_type": of_values(*AttentionType)("attn_type"),
    "window": (
        *legal(
            none=lambda case, step: case.window == (-1, -1),
            left_only=lambda case, step: case.window[0] >= 0 > case.window[1],
            right_only=lambda case, step: case.window[1] >= 0 > case.window[0],
            both_edges_equal=lambda case, step: case.window[0] == case.window[1] >= 0,
            both_edges_unlike=lambda case, step: min(case.window) >= 0 and case.window[0] != case.window[1],
            an_edge_of_0=lambda case, step: 0 in case.window,
            a_left_edge_beyond_65_inside_the_sequence=lambda case, step: (
                case.window[0] > 65 and any(r.query_len and r.context_len > case.window[0] for r in case.requests)
            ),
            a_left_edge_beyond_65_with_splits_inside=_splits_a_window,
        ),
        not_drawn("above 2^20", "a window that reaches beyond the sequence is drawn, and hides nothing"),
    ),
    "sink_tokens": legal(
        none=lambda case, step: not case.sink_tokens,
        outside_a_window=lambda case, step: (
            case.sink_tokens and any(0 <= case.window[0] < r.context_len - case.sink_tokens for r in case.requests)
        ),
        beyond_a_tile=lambda case, step: case.sink_tokens > 64,
    ),
    "chunked_local": legal(
        none=lambda case, step: case.chunked_local is None,
        _1=lambda case, step: case.chunked_local == 1,
        several_chunks=lambda case, step: case.chunked_local and any(r.seq_len > 2 * case.chunked_local for r in case.requests),
        a_query_before_the_sequence=lambda case, step: case.chunked_local and any(r.context_len < 0 for r in case.requests),
    ),
    "ranges_clamped": legal(
        off=lambda case, step: case.bidirectional_ranges and not case.ranges_clamped,
        with_a_left_window=lambda case, step: case.ranges_clamped and case.bidirectional_ranges and case.window[0] >= 0,
    ),
    "logits_soft_cap": (
        *legal(
            none=lambda case, step: case.logits_soft_cap is None,
            far_below_logits=lambda case, step: case.logits_soft_cap and case.values.kind == "extreme",
            below_a_quarter_or_above_50=lambda case, step: (
                case.logits_soft_cap and not 0.25 <= case.logits_soft_cap <= 50 and case.has_work
            ),
            with_small_logits=lambda case, step: case.logits_soft_cap and case.values.kind != "extreme",
        ),
        not_drawn("below 0.01 or above 10^5", _OF_ANY_SIZE),
        illegal("subnormal, negative, above 2^32, NaN, infinity", "Layer refuses it: kernels divide by it"),
    ),
    "alibi_slopes": (
        Region("none", lambda case, step: step.layer.alibi_slopes is None),
        Region("positive", of_tensor("alibi_slopes", lambda slopes: (slopes > 0).any())),
        Region("0", of_tensor("alibi_slopes", lambda slopes: (slopes == 0).any())),
        Region("negative", of_tensor("alibi_slopes", lambda slopes: (slopes < 0).any())),
        not_drawn("magnitudes above 1", _OF_ANY_SIZE),
        refused_if_not_finite(name="a slope"),
    ),
    "sinks": (
        Region("none", lambda case, step: step.layer.sinks is None),
        Region("-inf in all heads", of_tensor("sinks", lambda sinks: (sinks == -torch.inf).all())),
        Region("-inf in some heads", of_tensor("sinks", lambda sinks: len((sinks == -torch.inf).unique()) == 2)),
        Region("above all logits", lambda case, step: case.sinks == "above"),
        Region("below all logits", lambda case, step: case.sinks == "below"),
        Region("near the logits", lambda case, step: case.sinks == "near"),
        Region("of q's dtype", of_tensor("sinks", lambda sinks: sinks.dtype != torch.float32)),
        Region(
            "of q's dtype, after a call with other numbers in the same tensor",
            lambda case, step: (
                step.layer.sinks is not None and step.layer.sinks.element_size() < 4 and CONTENTS in case.earlier
            ),
        ),
        illegal("NaN, +infinity", "`validation.values` refuses it: it would take all weight"),
    ),
    "layout": (
        *tuple(Region(str(one), of_view(lambda view, one=one: view.layout is one)) for one in Layout),
        Region("none", lambda case, step: step.view is None),
    ),
    "kv_cache_dtype": (
        Region("none", lambda case, step: step.view is not None and step.layer.kv_cache_dtype is None),
        *(
            Region(str(dtype), lambda case, step, dtype=dtype: step.layer.kv_cache_dtype is dtype)
            for dtype in (torch.float8_e4m3fn, torch.float8_e4m3fnuz, torch.int8)
        ),
        illegal("float8_e5m2", "Layer refuses it: two bits of mantissa are too few"),
    ),
    "k_scale": (
        *_scale_regions("k_scale"),
        Region("one for each head", of_tensor("k_scale", lambda scale: scale.numel() > 1)),
    ),
    "v_scale": (
        *_scale_regions("v_scale"),
        Region("unlike k_scale", of_tensor("v_scale", lambda scale: True)),
    ),
    "k_scale_cache": _scale_cache_regions("k_scale_cache"),
    "v_scale_cache": (
        *_scale_cache_regions("v_scale_cache"),
        Region("strides unlike k_scale_cache", of_tensor("v_scale_cache", _is_by_heads)),
    ),
    "output_scale": _scale_regions("output_scale"),
}
