"""Targets that choose keys: planted faults, most of them those of public reports, are found, and what is right passes."""

import dataclasses
import functools
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attn_reference
import pytest
import torch
from attn_contract import Indexer, IndexLayout, IndexScore
from attn_contract.memory import extent
from attn_fuzz.cases import tensors
from attn_fuzz.cases.case import Case
from attn_fuzz.errors import FailedCheckError
from attn_fuzz.run import shard
from attn_fuzz.run.case.trial import try_case
from attn_fuzz.run.shard import FuzzPlan
from attn_fuzz.targets import indexer
from attn_fuzz.targets.indexer import EVERY_TERM, IndexerFunctions, gathered_keys, guarded, index_target
from attn_fuzz.targets.rng import rng_of_lengths
from attn_reference.indexer import request_rows, seen_units

EXAMPLES = 60
RIGHT = IndexerFunctions(
    write_index_cache=attn_reference.write_index_cache,
    gather=lambda cache, made, batch, count: gathered_keys(cache, made, batch, batch.num_actual_tokens)[:2],
    index_logits=attn_reference.index_logits,
    select=attn_reference.select,
    repeats=True,
)
SMALL: dict[str, Any] = {
    "group_sizes": (4, 1),
    "head_sizes": (16, 32),
    "block_sizes": (16, 4),
    "max_tokens": 8,
    "max_seq_len": 70,
    "description": "a test",
}
WITH_SCALES = {
    **EVERY_TERM,
    "layout": (IndexLayout.FLAT, IndexLayout.TILED),
    "cache_dtype": (torch.float8_e4m3fn, torch.float8_e4m3fnuz),
}
SMALL_TARGET = index_target("small-indexer", lambda: dataclasses.replace(RIGHT, gather=None), EVERY_TERM, **SMALL)
SCALED_TARGET = index_target("scaled-indexer", lambda: RIGHT, WITH_SCALES, **SMALL)


@functools.cache
def steps(terms: str) -> list[tuple[Any, ...]]:
    """The steps of index layers that are drawn for a target, and the layer and batch of each."""
    name = f"{__name__}:{'SMALL_TARGET' if terms == 'every' else 'SCALED_TARGET'}"
    drawn: list[Case] = shard.drawn(FuzzPlan(target=name, device="cpu", examples=EXAMPLES, seed=1, folder=Path()))
    found = []
    for case in drawn:
        step = tensors.build(case)
        assert step.kv_cache is not None
        made = indexer.index_step(
            step.q, step.kv_cache, step.layer, step.batch, EVERY_TERM if terms == "every" else WITH_SCALES
        )
        if made.rows:
            found.append((made, rng_of_lengths(step.batch)))
    return found


def flat_for_tiled(k, index_cache, made: Indexer, slot_mapping) -> None:
    """vllm #52109: written flat, read tiled."""
    written = dataclasses.replace(made, layout=IndexLayout.FLAT) if made.layout is IndexLayout.TILED else made
    attn_reference.write_index_cache(k, index_cache, written, slot_mapping)


def padding_to_slot_0(k, index_cache, made: Indexer, slot_mapping) -> None:
    attn_reference.write_index_cache(k, index_cache, made, slot_mapping)
    if (slot_mapping < 0).any():
        attn_reference.write_index_cache(torch.ones_like(k[:1]), index_cache, made, torch.tensor([0]))


def scale_of_half(k, index_cache, made: Indexer, slot_mapping) -> None:
    """A scale for a smaller largest number."""
    attn_reference.write_index_cache(k, index_cache, dataclasses.replace(made, largest=120.0), slot_mapping)


def float_scale(k, index_cache, made: Indexer, slot_mapping) -> None:
    """Scales are never powers of two."""
    kept = type(made.scale_format)("float32")
    attn_reference.write_index_cache(k, index_cache, dataclasses.replace(made, scale_format=kept), slot_mapping)


def stale_gather(cache, made: Indexer, batch, count):
    """vllm #40018: keys of the first block stand where those of later ones should."""
    keys = gathered_keys(cache, made, batch, batch.num_actual_tokens)
    codes = keys.codes.clone()
    codes[16:32] = codes[:16][: len(codes[16:32])]
    return codes, keys.scales


def without_relu(q, weights, cache, made: Indexer, batch):
    if made.score is IndexScore.MAX:
        return attn_reference.index_logits(q, weights, cache, made, batch)
    positive, negative = (attn_reference.index_logits(sign, weights, cache, made, batch) for sign in (q, _negated(q)))
    return torch.where(positive > -torch.inf, positive - negative, positive)


def _negated(q: torch.Tensor) -> torch.Tensor:
    return attn_reference.quantize(-q.float(), torch.ones(()), q.dtype) if q.itemsize == 1 else -q


def positive_weights(q, weights, cache, made: Indexer, batch):
    return attn_reference.index_logits(q, None if weights is None else weights.abs(), cache, made, batch)


def one_key_less(q, weights, cache, made: Indexer, batch):
    """The newest unit of each row is not scored."""
    logits = attn_reference.index_logits(q, weights, cache, made, batch)
    for r in range(batch.num_requests):
        rows, p = request_rows(batch, r)
        for row, n in zip(range(rows.start, rows.stop), seen_units(p, made).tolist(), strict=True):
            logits[:, row, max(n - 1, 0)] = -torch.inf
    return logits


def rounded_products(q, weights, cache, made: Indexer, batch):
    return attn_reference.index_logits(q, weights, cache, made, batch).bfloat16().float()


def first_row_for_all(q, weights, cache, made: Indexer, batch):
    """A verification of drafts takes the kernel of plain decodes (vllm #55239)."""
    logits = attn_reference.index_logits(q, weights, cache, made, batch)
    for r in range(batch.num_requests):
        rows, _ = request_rows(batch, r)
        seen = logits[:, rows] > -torch.inf
        logits[:, rows] = torch.where(seen, logits[:, rows][:, :1], logits[:, rows])
    return logits


def of_an_earlier_step() -> Callable[..., torch.Tensor]:
    """vllm #40018: what the first call over a cache has read is scored again."""
    caches: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def logits(q, weights, cache, made: Indexer, batch):
        kept = caches.setdefault(cache.data_ptr(), (cache, cache.as_strided(*_whole(cache)).clone()))[1]
        return attn_reference.index_logits(q, weights, kept.as_strided(cache.shape, cache.stride()), made, batch)

    return logits


def _whole(cache: torch.Tensor) -> tuple[tuple[int], tuple[int]]:
    return (extent(cache.shape, cache.stride()),), (1,)


def q_as_the_cache(q, weights, cache, made: Indexer, batch):
    """sglang #39628: q in one float8, read as that of the cache."""
    read = q.view(made.cache_dtype) if made.cache_dtype is not None and q.itemsize == 1 else q
    return attn_reference.index_logits(read, weights, cache, made, batch)


def of_rows(choose: Callable[[torch.Tensor, int], list[int]]) -> Callable[..., torch.Tensor]:
    """A selection by a function of the logits that a row sees, and of top_k; forced and open units are right."""

    def select(logits, made: Indexer, batch) -> torch.Tensor:
        selected = attn_reference.select(logits, made, batch)
        if made.first_units or made.last_units:
            return selected
        for r in range(batch.num_requests):
            rows, p = request_rows(batch, r)
            for row, n in zip(range(rows.start, rows.stop), seen_units(p, made).tolist(), strict=True):
                for s in range(made.num_selections):
                    units = choose(logits[s, row, :n], made.top_k)[: made.top_k]
                    selected[s, row, : made.top_k] = torch.tensor([*units, *[-1] * (made.top_k - len(units))])
        return selected

    return select


def _ranked(logits: torch.Tensor) -> list[int]:
    return logits.sort(descending=True, stable=True).indices.tolist()


def _in_arrival_order(logits: torch.Tensor, k: int) -> list[int]:
    """sglang #35257: all that reach the k-th logit, in arrival order: ties push out larger ones."""
    if len(logits) <= k:
        return list(range(len(logits)))
    least = float(logits[_ranked(logits)[k - 1]])
    return (logits >= least).nonzero().flatten().tolist()


def _without_ties(logits: torch.Tensor, k: int) -> list[int]:
    """sglang #30512: of equal logits at the cut none is taken."""
    if len(logits) <= k:
        return list(range(len(logits)))
    least = float(logits[_ranked(logits)[k]])
    return (logits > least).nonzero().flatten().tolist()


def ties_in_turns() -> Callable[..., torch.Tensor]:
    """The first of equal logits, the next time the last: each set is right."""
    calls = itertools.count()
    last_first = of_rows(lambda logits, k: [len(logits) - 1 - unit for unit in _ranked(logits.flip(0))])
    return lambda *arguments: (last_first if next(calls) % 2 else attn_reference.select)(*arguments)


def reads_beyond(logits, made: Indexer, batch) -> torch.Tensor:
    """One unit that the row does not see competes, too."""
    selected = attn_reference.select(logits, made, batch)
    for r in range(batch.num_requests):
        rows, p = request_rows(batch, r)
        for row, n in zip(range(rows.start, rows.stop), seen_units(p, made).tolist(), strict=True):
            if n < logits.shape[2] and made.top_k > n and not made.has_open_unit:
                selected[:, row, n] = n
    return selected


def zeros_for_holes(logits, made: Indexer, batch) -> torch.Tensor:
    return attn_reference.select(logits, made, batch).clamp(min=0)


def without_last(logits, made: Indexer, batch) -> torch.Tensor:
    return attn_reference.select(logits, dataclasses.replace(made, last_units=0), batch)


def without_open(logits, made: Indexer, batch) -> torch.Tensor:
    return attn_reference.select(logits, made, batch)[..., : made.top_k]


PLANTED = {
    "written flat, read tiled": ("scaled", {"write_index_cache": flat_for_tiled}),
    "padding written to slot 0": ("every", {"write_index_cache": padding_to_slot_0}),
    "another largest number": ("scaled", {"write_index_cache": scale_of_half}),
    "scales are no powers of two": ("scaled", {"write_index_cache": float_scale}),
    "a stale gather": ("scaled", {"gather": stale_gather}),
    "no relu": ("every", {"index_logits": without_relu}),
    "weights without a sign": ("every", {"index_logits": positive_weights}),
    "the newest unit is not scored": ("every", {"index_logits": one_key_less}),
    "rounded to bfloat16": ("every", {"index_logits": rounded_products}),
    "the first draft's logits": ("every", {"index_logits": first_row_for_all}),
    "keys of an earlier step": ("every", {"index_logits": of_an_earlier_step()}),
    "q in the float8 of the cache": ("every", {"index_logits": q_as_the_cache}),
    "ties in arrival order": ("every", {"select": of_rows(_in_arrival_order)}),
    "other ties each time": ("every", {"select": ties_in_turns(), "repeats": True}),
    "no ties": ("every", {"select": of_rows(_without_ties)}),
    "ranked in float16": ("every", {"select": of_rows(lambda logits, k: _ranked(logits.half()))}),
    "one unit beyond": ("every", {"select": reads_beyond}),
    "0 where there is no unit": ("every", {"select": zeros_for_holes}),
    "the last units are not forced": ("every", {"select": without_last}),
    "the open unit is forgotten": ("every", {"select": without_open}),
}


@pytest.mark.parametrize("name", PLANTED)
def test_planted_faults_are_found(name: str) -> None:
    terms, functions = PLANTED[name]
    for step, rng in steps(terms):
        try:
            indexer.check(step, IndexerFunctions(**functions), rng)
        except FailedCheckError:
            return
    pytest.fail(f"{name}: not found in {EXAMPLES} examples")


@pytest.mark.parametrize("terms", ["every", "scaled"])
def test_right_functions_pass(terms: str) -> None:
    right = RIGHT if terms == "scaled" else dataclasses.replace(RIGHT, gather=None)
    for step, rng in steps(terms):
        indexer.check(step, right, rng)


def test_a_case_is_run_as_those_of_any_target() -> None:
    wrong = dataclasses.replace(
        SMALL_TARGET, attention=indexer.attention_by(lambda: IndexerFunctions(select=zeros_for_holes), EVERY_TERM)
    )
    drawn = shard.drawn(FuzzPlan(target=f"{__name__}:SMALL_TARGET", device="cpu", examples=EXAMPLES, seed=2, folder=Path()))
    assert {try_case(case, SMALL_TARGET, "cpu").kind for case in drawn[:8]} == {"agree"}
    verdicts = [try_case(case, wrong, "cpu") for case in drawn[:30]]
    failed = [verdict for verdict in verdicts if not verdict.passed]
    assert {(verdict.kind, verdict.about) for verdict in failed} == {("value", "selected")}
    assert "twice" in failed[0].message or "expected" in failed[0].message


def test_steps_have_ties_and_lengths_at_borders() -> None:
    """What the draws of the other tests rely on."""
    made = [step for step, _ in steps("every")]
    assert any(step.indexer.top_k > step.indexer.num_units(step.batch.max_seq_len) for step in made)
    assert any(step.indexer.top_k < step.indexer.num_units(step.batch.max_seq_len) for step in made)
    assert any(step.weights is not None and bool((step.weights[: step.rows] < 0).any()) for step in made)
    assert any(step.q.stride(0) > step.q[0].numel() for step in made)
    assert any(step.index_cache.stride(0) > step.index_cache[0].numel() for step in made)
    assert any(step.batch.num_requests > 1 for step in made)
    assert any(bool((step.batch.query_start_loc.diff() > step.batch.seq_lens).any()) for step in made)
    tied = 0
    for step in made:
        cache = step.cache_in(step.written_by(attn_reference.write_index_cache))
        logits = attn_reference.index_logits(step.q, step.weights, cache, step.indexer, step.batch)
        rows = [row[row > -torch.inf] for row in logits[0, : step.rows]]
        tied += any(len(row) > len(row.unique()) for row in rows)
    assert tied > len(made) // 3


def test_a_write_beside_a_guarded_tensor_is_found() -> None:
    with guarded((2, 3), torch.float32, "logits") as logits:
        logits.fill_(1.0)
    beyond = pytest.raises(FailedCheckError, match=r"wrote to \[1, 3\] of logits, which has shape \(2, 3\); 1 elements")
    with beyond, guarded((2, 3), torch.float32, "logits") as logits:
        logits.as_strided((1,), (1,), logits.stride(0) + 3).fill_(1.0)
