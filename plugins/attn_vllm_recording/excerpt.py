"""Copies the judged part of a call to the CPU: some requests, the last queries of a long prompt, some of many heads.

Attention computes each query of each head by itself. So the excerpt is a call of its own, and its output is a part of the whole
call's. The copies take no memory of the server's GPU, and do not change with later writes of vLLM.
"""

import dataclasses
import itertools
import random
from dataclasses import dataclass
from typing import Final

import torch
from attn_contract import AttentionType, Batch, Layer, Layout
from attn_contract.rules import HEADS, KV_HEADS
from attn_fuzz import Call
from attn_fuzz.cases import axes

from attn_vllm_recording.errors import NotJudgedError

MAX_WORK: Final = 1 << 30
"""The most work of an excerpt: see `_work`. A core judges as much in some seconds, in about a GB."""
QUERIES_OF_A_KEY: Final = 64
"""The cost of a key for the judge, in products with queries, also if few queries see it."""


@dataclass(frozen=True)
class Rows:
    """The last queries of a request, rows [begin, end) of q, which see up to seq_len keys."""

    request: int
    begin: int
    end: int
    seq_len: int

    @property
    def query_len(self) -> int:
        return self.end - self.begin


@dataclass(frozen=True)
class Choice:
    """The part of a call that is judged.

    Args:
        rows: the rows of some requests.
        heads, kv_heads: [begin, end) of the query heads and of the KV heads that they read.
    """

    rows: tuple[Rows, ...]
    heads: tuple[int, int]
    kv_heads: tuple[int, int]


def choose(batch: Batch, layer: Layer, turn: int, *, decodes_only: bool) -> Choice:
    """Choose as many requests as MAX_WORK allows, beginning with any.

    If a request is too long for all heads, the query heads of one KV head are chosen, or a single head. A prompt that is still
    too long is cut to its last queries.

    Args:
        turn: the seed of a random choice. A choice by the number itself would depend on the layer, whose calls are regular.
        decodes_only: True to leave out requests of several queries.

    Raises:
        NotJudgedError: no request can be chosen.
    """
    held = _candidates(batch, layer, decodes_only=decodes_only)
    rng = random.Random(turn)
    first = rng.randrange(len(held))
    ordered = (*held[first:], *held[:first])
    num_heads = _num_heads(layer, ordered[0])
    left = MAX_WORK // (num_heads * layer.head_size)
    chosen: list[Rows] = []
    for rows in ordered:
        if not chosen and _work(rows) > left and layer.attn_type.reads_cache:
            queries = max(0, left // rows.seq_len - QUERIES_OF_A_KEY)
            rows = dataclasses.replace(rows, begin=rows.end - queries)
        if rows.query_len and _work(rows) <= left:
            chosen.append(rows)
            left -= _work(rows)
    if not chosen:
        raise NotJudgedError(f"one head of one request is more work than {MAX_WORK}")
    group = layer.num_heads // layer.num_kv_heads
    head = rng.randrange(layer.num_heads // num_heads) * num_heads
    kv_head = head // group
    return Choice(tuple(chosen), (head, head + num_heads), (kv_head, kv_head + max(1, num_heads // group)))


def _candidates(batch: Batch, layer: Layer, *, decodes_only: bool) -> list[Rows]:
    starts, seq_lens = batch.query_start_loc.tolist(), batch.seq_lens.tolist()
    held = [Rows(r, begin, end, seq_lens[r]) for r, (begin, end) in enumerate(itertools.pairwise(starts)) if begin < end]
    if not held:
        raise NotJudgedError("the step has no query")
    if layer.attn_type is AttentionType.DECODER:
        # before it captures a graph, vLLM calls with all lengths set to 1
        held = [rows for rows in held if rows.seq_len >= rows.query_len]
        if not held:
            raise NotJudgedError("a warm-up of vLLM: sequences are shorter than their queries")
    if decodes_only:
        held = [rows for rows in held if rows.query_len == 1 < rows.seq_len]
        if not held:
            raise NotJudgedError("a prompt over a quantized cache: this backend reads new keys before they are quantized")
    return held


def _work(rows: Rows) -> int:
    """The work of the judge for one element of one query head."""
    return (rows.query_len + QUERIES_OF_A_KEY) * rows.seq_len


def _num_heads(layer: Layer, rows: Rows) -> int:
    """All query heads, those of one KV head, or one head: the most that leave room for the last queries of a request."""
    last = rows
    if layer.attn_type.reads_cache:
        last = dataclasses.replace(rows, begin=max(rows.begin, rows.end - QUERIES_OF_A_KEY))
    for num_heads in (layer.num_heads, layer.num_heads // layer.num_kv_heads):
        if _work(last) * num_heads * layer.head_size <= MAX_WORK:
            return num_heads
    return 1


class Excerpt:
    """Copies of the chosen part of a call. `call` completes them, and `output` copies the same part of the output.

    Args:
        layer: its tensors are on the CPU.
        query: [T, H, D].
        key, value: [T, HK, D] of a layer without a cache.
    """

    def __init__(
        self,
        layer: Layer,
        batch: Batch,
        choice: Choice,
        query: torch.Tensor,
        key: torch.Tensor | None,
        value: torch.Tensor | None,
    ) -> None:
        self.whole, self.batch, self.choice = layer, batch, choice
        self.layer = _with_heads(layer, choice)
        self.rows = torch.cat([torch.arange(rows.begin, rows.end) for rows in choice.rows]).to(query.device)
        self.q = self._copied(query, choice.heads)
        self.k, self.v = (None, None)
        if not layer.attn_type.reads_cache:
            if key is None or value is None:
                raise NotJudgedError("a layer without a cache was given no keys")
            self.k, self.v = self._copied(key, choice.kv_heads), self._copied(value, choice.kv_heads)

    @property
    def max_seq_len(self) -> int:
        return max(rows.seq_len for rows in self.choice.rows)

    def call(self, kv_cache: torch.Tensor) -> Call:
        """The call, with copies of the chosen requests' blocks in vLLM's cache of this layer.

        Raises:
            NotJudgedError: the cache is not what its backend allocates, or a block table leads outside.
            ContractError: the call contradicts the contract.
        """
        lengths = [rows.query_len for rows in self.choice.rows]
        pages, table = None, None
        if self.layer.layout is not None:
            pages, table = self._pages(kv_cache, self.layer.layout)
        numbers = [rows.request for rows in self.choice.rows]
        causal, ranges = self.batch.causal, self.batch.bidirectional_ranges
        batch = Batch(
            query_start_loc=torch.tensor([0, *itertools.accumulate(lengths)], dtype=torch.int32),
            seq_lens=torch.tensor([rows.seq_len for rows in self.choice.rows], dtype=torch.int32),
            max_query_len=max(lengths),
            max_seq_len=self.max_seq_len,
            num_actual_tokens=len(self.q),
            causal=causal if isinstance(causal, bool) else causal.cpu()[numbers],
            block_table=table,
            bidirectional_ranges=None if ranges is None else ranges.cpu()[numbers].contiguous(),
        )
        return Call(q=self.q, layer=self.layer, batch=batch, kv_cache=pages, k=self.k, v=self.v)

    def output(self, output: torch.Tensor) -> torch.Tensor:
        """The chosen rows and heads of [T, H, D]."""
        return self._copied(output, self.choice.heads)

    def _copied(self, tensor: torch.Tensor, heads: tuple[int, int]) -> torch.Tensor:
        return tensor[:, slice(*heads)][self.rows].detach().cpu()

    def _pages(self, kv_cache: torch.Tensor, layout: Layout) -> tuple[torch.Tensor, torch.Tensor]:
        """The blocks in use as a cache in the layer's layout, and the block table with their new numbers."""
        block_size = _block_size(kv_cache, layout, self.whole)
        assert self.batch.block_table is not None
        table = self.batch.block_table.cpu()
        numbers: dict[int, int] = {}
        rows_of_table = []
        for rows in self.choice.rows:
            blocks = table[rows.request, : -(-rows.seq_len // block_size)].tolist()
            if len(blocks) * block_size < rows.seq_len or not all(0 <= block < len(kv_cache) for block in blocks):
                raise NotJudgedError("a block table leads outside the cache")
            rows_of_table.append(torch.tensor([numbers.setdefault(block, len(numbers)) for block in blocks], dtype=torch.int32))
        used = torch.tensor(list(numbers), dtype=torch.int64, device=kv_cache.device)
        pages = cache_of(kv_cache[used].detach().cpu(), self.whole)
        heads = slice(*self.choice.kv_heads)
        if layout.is_x_packed:  # each page is dense, with its heads outermost
            pages = pages.unflatten(2, (self.whole.num_kv_heads, -1))[:, :, heads].flatten(2)
        else:
            pages = pages[:, heads]
        return pages.contiguous(), torch.nn.utils.rnn.pad_sequence(rows_of_table, batch_first=True)


def requests_of_rows(lengths: list[int], tables: list[torch.Tensor]) -> tuple[torch.Tensor, Batch]:
    """The blocks in use, in order, and a batch whose cache has only these. Each row of q is a request of one query.

    Args:
        lengths: the number of keys that each row sees.
        tables: [blocks] of each row, with the numbers of blocks of the whole cache.
    """
    used = torch.cat(tables).unique()
    places = [torch.searchsorted(used, table).int() for table in tables]
    return used, Batch(
        query_start_loc=torch.arange(len(lengths) + 1, dtype=torch.int32),
        seq_lens=torch.tensor(lengths, dtype=torch.int32),
        max_query_len=1,
        max_seq_len=max(lengths),
        num_actual_tokens=len(lengths),
        causal=True,
        block_table=torch.nn.utils.rnn.pad_sequence(places, batch_first=True),
    )


def cache_of(kv_cache: torch.Tensor, layer: Layer) -> torch.Tensor:
    """vLLM's cache, shaped as the layer's layout says.

    Raises:
        NotJudgedError: the cache is not what its backend allocates.
    """
    if layer.layout is None:
        raise NotJudgedError("a layer without a cache")
    _block_size(kv_cache, layer.layout, layer)
    shaped = kv_cache.transpose(0, 1).flatten(2) if layer.layout.is_x_packed else kv_cache
    return shaped if layer.kv_cache_dtype is None else shaped.view(layer.kv_cache_dtype)


def _with_heads(layer: Layer, choice: Choice) -> Layer:
    """The layer with only the chosen heads."""
    entries = {HEADS: slice(*choice.heads), KV_HEADS: slice(*choice.kv_heads)}
    cached = ("k_scale_cache", "v_scale_cache")  # these are cut with the cache
    tensors = {name: tensor for name, tensor in axes.taken(layer, layer, entries).items() if name not in cached}
    num_heads, num_kv_heads = (end - begin for begin, end in (choice.heads, choice.kv_heads))
    return dataclasses.replace(layer, num_heads=num_heads, num_kv_heads=num_kv_heads, **tensors)


def _block_size(kv_cache: torch.Tensor, layout: Layout, layer: Layer) -> int:
    """BS of vLLM's [NB, HK, BS, content], or of [NB, 2, BS, HK * D] of the backends that have pages of AMD's kernels."""
    heads, row = layer.num_kv_heads, layout.row_size(layer.head_size)
    expected = (2, heads * row) if layout.is_x_packed else (heads, 2 * row)
    if kv_cache.dim() != 4 or (kv_cache.shape[1], kv_cache.shape[3]) != expected:
        raise NotJudgedError(f"a cache of {kv_cache.dim()} dimensions or another content than {layout}")
    return kv_cache.shape[2]
