"""Attention layers of released models, and of one rank where a model's heads are dealt to several."""

import functools
import tomllib
from pathlib import Path

import msgspec

FILE = Path(__file__).with_name("models.toml")
RANKS = (1, 2, 4, 8)
"""Sizes of tensor parallelism."""
MIN_HEADS = 8
"""Query heads of a rank: models of fewer are small enough for one."""


class LayerKind(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One kind of layer of a model.

    Attributes:
        share: the number of layers of this kind, in proportion to the others' shares.
        window: keys that a query sees, itself among them; None: all before it.
        chunked_local: keys of a chunk; None: no chunks.
        sinks: True if each head has a logit without a key.
        logits_soft_cap: None: no cap.
    """

    share: int = 1
    window: int | None = None
    chunked_local: int | None = None
    sinks: bool = False
    logits_soft_cap: float | None = None


class Model(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    name: str
    num_heads: int
    num_kv_heads: int
    head_size: int
    layers: tuple[LayerKind, ...] = (LayerKind(),)

    @property
    def ranks(self) -> tuple[int, ...]:
        """Sizes of tensor parallelism that deal whole heads: where there are more ranks than KV heads, some have copies."""
        return tuple(n for n in RANKS if n == 1 or (self._deals(n) and self.num_heads // n >= MIN_HEADS))

    def heads_of_a_rank(self, ranks: int) -> tuple[int, int]:
        """Query heads and KV heads."""
        return self.num_heads // ranks, max(1, self.num_kv_heads // ranks)

    def _deals(self, ranks: int) -> bool:
        return self.num_heads % ranks == 0 and 0 in (self.num_kv_heads % ranks, ranks % self.num_kv_heads)


class _Document(msgspec.Struct, forbid_unknown_fields=True):
    models: tuple[Model, ...]


@functools.cache
def models() -> tuple[Model, ...]:
    return msgspec.convert(tomllib.loads(FILE.read_text(encoding="utf-8")), _Document).models
