"""Drawn cases: layers of released models under drawn traffic."""

import random
from typing import NamedTuple

from attn_contract import Layout

from benchmarks.steps.cases import INDEX_OPS, Attention, IndexOp
from benchmarks.steps.models import LayerKind, Model, models
from benchmarks.steps.traffic import TRAFFIC, Lengths, contexts

BLOCK_SIZES = (16, 16, 16, 32, 64, 128)
LAYOUTS = (Layout.BLOCKS_FIRST_NHD,) * 7 + (Layout.BLOCKS_FIRST_HND, Layout.SHUFFLED, Layout.X_PACKED)
"""Most are as vLLM's and AITER's Triton kernels read them, so that there are kernels to compare with."""
FLOAT8_SHARE = 0.25
MAX_CACHE_BYTES = 24 << 30
"""The most bytes of one copy of a case's keys and values."""


def draw_cases(number: int, seed: int) -> list[Attention]:
    """The first cases of a seed: a larger number adds cases after them. Each kind of traffic comes in turn.

    A case is of one rank of tensor parallelism. A case whose keys and values need more than MAX_CACHE_BYTES loses its last
    requests.
    """
    rng = random.Random(seed)
    kinds = list(TRAFFIC)
    return [_case(rng, i, kinds[i % len(kinds)]) for i in range(number)]


def draw_index(number: int, seed: int) -> list[IndexOp]:
    """The first decodes of a seed that choose their keys: logits and selection in turn."""
    rng, drawn = random.Random(seed), list[IndexOp]()
    for i in range(number):
        lengths, op = contexts(rng), INDEX_OPS[i % len(INDEX_OPS)]
        name = f"{i} index {op}, {len(lengths)} x {_range(lengths)}"
        drawn.append(IndexOp(name=name, op=op, seq_lens=lengths, traffic="index"))
    return drawn


def _case(rng: random.Random, number: int, traffic: str) -> Attention:
    model = rng.choice(models())
    kind = rng.choices(model.layers, [layer.share for layer in model.layers])[0]
    ranks = rng.choice(model.ranks)
    float8_cache, layout, block_size = rng.random() < FLOAT8_SHARE, rng.choice(LAYOUTS), rng.choice(BLOCK_SIZES)
    cache = Cache(layout, block_size, float8_cache)
    step = draw_step(rng, traffic, model, ranks, cache)
    name = f"{number} {traffic}: {_words(model, kind, ranks, step)}{', fp8' * float8_cache}, {layout.name} {block_size}"
    return case_of(name, traffic, step, model, kind, ranks, cache)


class Cache(NamedTuple):
    """The properties of a cache, which an engine chooses once for all layers and steps."""

    layout: Layout
    block_size: int
    is_float8: bool


def draw_step(rng: random.Random, traffic: str, model: Model, ranks: int, cache: Cache) -> Lengths:
    """A step whose keys and values fit into a cache."""
    _, num_kv_heads = model.heads_of_a_rank(ranks)
    bytes_per_key = 2 * num_kv_heads * model.head_size * (1 if cache.is_float8 else 2)
    return _fitting(TRAFFIC[traffic](rng), MAX_CACHE_BYTES // bytes_per_key)


def case_of(name: str, traffic: str, step: Lengths, model: Model, kind: LayerKind, ranks: int, cache: Cache) -> Attention:
    """A layer of one rank in a step."""
    num_heads, num_kv_heads = model.heads_of_a_rank(ranks)
    return Attention(
        name=name,
        traffic=traffic,
        query_lens=step.query_lens,
        seq_lens=step.seq_lens,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_size=model.head_size,
        block_size=cache.block_size,
        layout=cache.layout,
        window=kind.window,
        chunked_local=kind.chunked_local,
        sinks=kind.sinks,
        logits_soft_cap=kind.logits_soft_cap,
        float8_cache=cache.is_float8,
        common_prefix_len=step.common_prefix_len if _sees_all(kind) else 0,
    )


def _fitting(step: Lengths, most_keys: int) -> Lengths:
    """The first requests, as many as fit, and one at least."""
    count, keys = 1, step.seq_lens[0]
    while count < len(step.seq_lens) and keys + step.seq_lens[count] <= most_keys:
        keys += step.seq_lens[count]
        count += 1
    prefix = step.common_prefix_len if count > 1 else 0
    return Lengths(step.query_lens[:count], step.seq_lens[:count], prefix)


def _sees_all(kind: LayerKind) -> bool:
    """Cascade attention is for layers in which every query sees the whole prefix."""
    return kind.window is None and kind.chunked_local is None


def _words(model: Model, kind: LayerKind, ranks: int, step: Lengths) -> str:
    name = model.name.partition("/")[2]
    rules = {"window": kind.window, "chunks of": kind.chunked_local, "cap": kind.logits_soft_cap}
    said = [f"{rule} {value:g}" for rule, value in rules.items() if value] + ["sinks"] * kind.sinks
    queries = _range(step.query_lens)
    lengths = f"{len(step.seq_lens)} x {queries} on {_range(step.seq_lens)}"
    return ", ".join([f"{name} / {ranks}" if ranks > 1 else name, *said, lengths])


def _range(lengths: tuple[int, ...]) -> str:
    least, most = min(lengths), max(lengths)
    return f"{least}" if least == most else f"{least}..{most}"
