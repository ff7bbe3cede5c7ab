"""Layers of a model that ask the same of attention."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from attn_contract import AttentionType, Layout


@dataclass(frozen=True, kw_only=True)
class Group:
    """Layers that attend alike.

    Args:
        layers: their numbers, counted from 0; in a model of encoder and decoder, from 0 in each.
        num_heads, num_kv_heads, head_size, attn_type: as in AttentionConfig.
        scale: the factor of q.k.
        rules: by the rule's name, as in AttentionConfig.
        top_k: as in AttentionConfig.
        layout: the one that holds its rows; None leaves the choice to the backend.
    """

    layers: tuple[int, ...]
    num_heads: int
    num_kv_heads: int
    head_size: int
    scale: float
    attn_type: AttentionType = AttentionType.DECODER
    rules: Mapping[str, Any] = field(default_factory=dict)
    top_k: int | None = None
    layout: Layout | None = None

    def with_ranges(self, longest: float) -> "Group":
        """The same layers in a model whose images see themselves both ways, inside the window if there is one.

        Args:
            longest: the tokens of an image. A window that is as wide hides none of them, so that nothing need hold it there.
        """
        ranges = {"bidirectional_ranges": True}
        if "window" in self.rules and self.rules["window"][0] < longest - 1:
            ranges["ranges_clamped"] = True
        return dataclasses.replace(self, rules={**self.rules, **ranges})
