"""Arguments of the attention kernel for a call's rules: those that are on, their numbers, and compiled-in constants."""

from attn_contract import Batch, Layer

from attn_optimized.launch.units import distance

IMPLEMENTED_RULES = frozenset(
    {
        "head_size_v",
        "window",
        "sink_tokens",
        "chunked_local",
        "ranges_clamped",
        "logits_soft_cap",
        "q_scale",
        "alibi_slopes",
        "sinks",
        "bidirectional_ranges",
        "qq_bias",
        "selection_unit",
        "key_unit",
    }
)
"""The rules of a layer and of a step that the kernels implement. Any other is refused before a launch."""


def rule_numbers(layer: Layer, batch: Batch) -> dict[str, int | float]:
    """The numbers of the rules, by the kernel's names. The number of a rule that is off changes nothing."""
    left, right = layer.window
    return {
        "scale": layer.scale,
        "logits_soft_cap": layer.logits_soft_cap or 1.0,
        "window_left": distance(left),
        "window_right": distance(right),
        "max_ahead": 0 if batch.causal is True else distance(-1),
        "range_left": distance(left if layer.ranges_clamped else -1),
        "sink_tokens": layer.sink_tokens if has_sink_tokens(layer) else 0,
        "chunked_local": layer.chunked_local or 0,
        "num_ranges": 0 if batch.bidirectional_ranges is None else batch.bidirectional_ranges.shape[1],
        "qq_bias_len": 0 if batch.qq_bias is None else len(batch.qq_bias),
    }


def has_other_masks(layer: Layer, batch: Batch) -> bool:
    """True if a rule besides causality and the window may change which keys a query sees."""
    tensors = batch.bidirectional_ranges, batch.qq_bias
    return has_sink_tokens(layer) or layer.chunked_local is not None or any(tensor is not None for tensor in tensors)


def has_sink_tokens(layer: Layer) -> bool:
    """True if sink tokens may be visible outside the window: a window without edges holds the first keys anyway."""
    return layer.sink_tokens > 0 and max(layer.window) >= 0


def has_left_edge(layer: Layer) -> bool:
    """True if the first keys that a query sees depend on its position."""
    return layer.window[0] >= 0 or layer.chunked_local is not None


def has_soft_cap(layer: Layer) -> bool:
    """True if logits are capped."""
    return layer.logits_soft_cap is not None


def has_bias(layer: Layer, batch: Batch) -> bool:
    """True if something is added to logits."""
    return layer.alibi_slopes is not None or batch.qq_bias is not None


def window_keys(layer: Layer, batch: Batch) -> int | None:
    """An upper bound of the keys that a query sees through its window or in its chunk; None if there is no such bound."""
    if has_sink_tokens(layer) or batch.bidirectional_ranges is not None:
        return None
    left, right = layer.window
    ahead = 0 if batch.causal is True else right
    bounds = [left + 1 + ahead] if min(left, ahead) >= 0 else []
    if layer.chunked_local is not None:
        bounds.append(layer.chunked_local)
    return min(bounds, default=None)


def most_keys(layer: Layer, batch: Batch) -> int | None:
    """An upper bound of the keys that a query sees by its selection, window or chunk; None if there is no such bound."""
    if layer.selection_unit is None or batch.selected is None:
        return window_keys(layer, batch)
    return batch.selected.shape[2] * layer.selection_unit
