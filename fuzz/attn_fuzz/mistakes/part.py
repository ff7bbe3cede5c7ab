"""One request of a call as the reference attends to it, with methods that change it as mistakes do."""

import dataclasses
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from attn_contract import Batch, KVCacheView, Layer
from attn_fuzz.cases.call import Call
from attn_fuzz.cases.tensors import Step
from attn_reference import Request, visible
from attn_reference.kv_cache import gather_rows
from attn_reference.logits import logit_bias, to_logits
from attn_reference.masks import position_of

Outputs = Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
"""Makes the out [q, H, D] and the LSE [q, H] of a mistake from those of a part."""


@dataclass(frozen=True, eq=False)
class Part:
    """Rows of one request, its keys and values, and the layer and batch whose rules hold for them.

    Attributes:
        outputs: the change that a mistake makes in the results; None: no change.
        own_keys: True if the keys and values of the step's own tokens come from k and v, and not from the cache.
    """

    call: Call
    request: Request
    layer: Layer
    batch: Batch
    outputs: Outputs | None = None
    own_keys: bool = False

    @cached_property
    def p(self) -> torch.Tensor:
        """[q, 1], the position of each query."""
        return self.request.query_positions[:, None]

    @cached_property
    def j(self) -> torch.Tensor:
        """[1, k], the position of each key."""
        return position_of(self.c, self.layer.key_unit)

    @cached_property
    def c(self) -> torch.Tensor:
        """[1, k], each key."""
        return torch.arange(len(self.request.key), device=self.request.key.device)[None]

    @cached_property
    def index(self) -> int:
        return self.request.index

    @cached_property
    def seq_len(self) -> int:
        return int(self.call.batch.seq_lens[self.index])

    @cached_property
    def num_keys(self) -> int:
        return self.call.layer.num_keys(self.seq_len)

    @cached_property
    def context_len(self) -> int:
        starts = self.call.batch.query_start_loc[self.index : self.index + 2].tolist()
        return self.seq_len - (starts[1] - starts[0])

    @cached_property
    def view(self) -> KVCacheView | None:
        """The view of the cache; None without one."""
        if self.call.kv_cache is None or self.call.layer.layout is None:
            return None
        return self.call.layer.view_of(self.call.kv_cache)

    @property
    def blocks(self) -> torch.Tensor:
        """The request's row of the block table, as far as it holds keys."""
        assert self.view is not None
        assert self.call.batch.block_table is not None
        return self.call.batch.block_table[self.index, : -(-self.num_keys // self.view.block_size)]

    def having(self, **fields: Any) -> "Part":
        """The part with other fields of its request."""
        return dataclasses.replace(self, request=dataclasses.replace(self.request, **fields))

    def ruled(self, *, layer: dict[str, Any] | None = None, batch: dict[str, Any] | None = None) -> "Part":
        """The part under other rules: fields of the layer and of the batch. Its visibility and its biases follow from them."""
        other = dataclasses.replace(
            self,
            layer=dataclasses.replace(self.layer, **layer or {}),
            batch=dataclasses.replace(self.batch, **batch or {}),
        )
        p, j = self.request.query_positions, other.j[0]
        return other.having(
            visible=visible(p, j, other.layer, other.batch, self.index),
            bias=logit_bias(p, j, other.layer, other.batch, self.index, torch.float64),
        )

    def adding(self, bias: torch.Tensor) -> "Part":
        """The part with numbers added to its logits, of shape [H, q, k] or one that broadcasts to it."""
        bias = bias.double().expand(self.layer.num_heads, len(self.p), self.j.shape[1])
        return self.having(bias=bias if self.request.bias is None else self.request.bias + bias)

    def with_logits(self, wanted: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> "Part":
        """The part with the logits that `wanted` makes of the scores [H, q, k] and of the biases of the right call."""
        scores, none = self.scores, torch.zeros((), dtype=torch.float64)
        logits = wanted(scores, none if self.request.bias is None else self.request.bias)
        return self.having(bias=logits - to_logits(scores, None, self.layer))

    @property
    def scores(self) -> torch.Tensor:
        """[H, q, k], scale * q.k"""
        group = self.layer.num_heads // self.layer.num_kv_heads
        key = self.request.key.repeat_interleave(group, 1)
        return self.layer.scale * torch.einsum("qhd,khd->hqk", self.request.query, key)

    def gathered(
        self,
        *,
        table: torch.Tensor | None = None,
        num_keys: int | None = None,
        layer: dict[str, Any] | None = None,
        view: dict[str, int] | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values that another reading of the cache gives.

        Args:
            table: [blocks], in place of the request's row of the block table.
            num_keys: in place of the request's number.
            layer: fields of the layer that differ, such as scales.
            view: fields of the view that differ, such as strides.

        Raises:
            IndexError, RuntimeError: the reading leads out of the cache.
        """
        assert self.view is not None
        assert self.call.kv_cache is not None
        assert self.call.batch.block_table is not None
        key, value = gather_rows(
            self.call.kv_cache,
            dataclasses.replace(self.call.layer, **layer or {}),
            self.call.batch.block_table[self.index] if table is None else table,
            len(self.request.key) if num_keys is None else num_keys,
            torch.float64,
            dataclasses.replace(self.view, **view or {}),
        )
        if self.own_keys and num_keys is None:
            context = max(self.context_len, 0)
            key, value = (
                torch.cat([cached[:context], dense[context:]])
                for cached, dense in ((key, self.request.key), (value, self.request.value))
            )
        return key, value

    def reading(self, **other: Any) -> "Part":
        """The part with the keys and values that `gathered` gives."""
        key, value = self.gathered(**other)
        return self.having(key=key, value=value)

    def longer(self, key: torch.Tensor, value: torch.Tensor) -> "Part":
        """The part with more keys, under the rules that it has, as if the request had the tokens of these keys."""
        seq_lens = self.batch.seq_lens.clone()
        seq_lens[self.index] = len(key) * self.layer.tokens_per_key
        return self.having(key=key, value=value).ruled(batch={"seq_lens": seq_lens})

    def with_zeros(self, more: int) -> "Part":
        """The part with more keys and values, all of them 0, after its own. NaN and infinity in its own become 0."""
        key, value = (
            torch.cat([x.nan_to_num(0, 0, 0), x.new_zeros(more, *x.shape[1:])]) for x in (self.request.key, self.request.value)
        )
        return self.longer(key, value)

    def resulting(self, outputs: Outputs) -> "Part":
        return dataclasses.replace(self, outputs=outputs)


def parts_of(call: Call | Step, of_call: Iterable[Request]) -> list[Part]:
    """The requests `of_call` of a call (`attn_fuzz.verdict.oracle.requests`) without a mistake."""
    plain = Call(q=call.q, layer=call.layer, batch=call.batch, kv_cache=call.kv_cache, k=call.k, v=call.v)
    dense = call.dense_keys if isinstance(call, Step) else ()
    return [Part(plain, request, call.layer, call.batch, own_keys=bool(dense) and dense[request.index]) for request in of_call]
