"""The functions of an index layer, each called and judged by the reference."""

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import attn_reference
import torch
from attn_contract import Batch, Indexer
from attn_fuzz.cases.poison import bits, canary, poison
from attn_fuzz.errors import FailedCheckError
from attn_fuzz.targets.indexer.gathered import gathered_keys
from attn_fuzz.targets.indexer.step import GUARD, MAX_PADDING, NUMBERS, IndexStep, Terms, batch_on, index_step, on_device
from attn_fuzz.targets.rng import rng_of_lengths
from attn_fuzz.targets.rows import rows_of
from attn_fuzz.targets.target import AttentionFunction
from attn_fuzz.verdict.indexer import index_oracle, wrong_logits, wrong_selection

EARLIER: Final = 0.25
"""The share of steps before which another one ran over the same cache."""


@dataclass(frozen=True, kw_only=True)
class IndexerFunctions:
    """The functions of a target, with the arguments and results of those of `attn_reference`. None: it has no such function.

    `gather` gets the cache, the indexer, the batch and the number of keys, and returns codes and scales as GatheredKeys has
    them. `index_logits` may return more units than the step has, and `select` entries of any width.

    Args:
        repeats: True if a selection that is made twice is the same set.
        ranks_nan: True if NaN is less than every number for `select`. Else no logit that a row sees is NaN.
    """

    write_index_cache: Callable[[torch.Tensor, torch.Tensor, Indexer, torch.Tensor], object] | None = None
    gather: Callable[[torch.Tensor, Indexer, Batch, int], tuple[torch.Tensor, torch.Tensor]] | None = None
    index_logits: Callable[[torch.Tensor, torch.Tensor | None, torch.Tensor, Indexer, Batch], torch.Tensor] | None = None
    select: Callable[[torch.Tensor, Indexer, Batch], torch.Tensor] | None = None
    choose: Callable[[torch.Tensor, torch.Tensor | None, torch.Tensor, Indexer, Batch], torch.Tensor] | None = None
    repeats: bool = False
    ranks_nan: bool = False


def attention_by(
    functions: Callable[[], IndexerFunctions], terms: Terms, numbers: Sequence[str] = NUMBERS
) -> AttentionFunction:
    """A step of an index layer in place of attention, which is judged here.

    Args:
        functions: loads the functions.
        terms: the terms of an index layer that the target serves.
        numbers: the kinds of NUMBERS to draw.
    """

    def attention(q, k, v, kv_cache, layer, batch, *, out, lse) -> None:
        cpu = torch.device("cpu")
        step = index_step(q.to(cpu), kv_cache, layer, batch_on(batch, cpu), terms, numbers)
        if step.rows:
            check(step, functions(), rng_of_lengths(step.batch), q.device)
        rows_of(out, layer, step.rows).zero_()

    return attention


def check(step: IndexStep, functions: IndexerFunctions, rng: random.Random, device: torch.device | None = None) -> None:
    """Call each function of a target, and judge its result.

    Args:
        step: on the CPU, where it is judged.
        device: where the functions get it; None: on the CPU.

    Raises:
        FailedCheckError: a byte of the cache, a logit or a selection is wrong.
    """
    called = step if device is None else step.on(device)
    right = step.written_by(attn_reference.write_index_cache)
    if functions.write_index_cache is not None:
        written = called.written_by(functions.write_index_cache, rng.choice((0, 0, 1, 2))).cpu()
        if len(wrong := (written != right).nonzero()):
            at = int(wrong[0])
            numbers = f"got 0x{int(written[at]):02X}, expected 0x{int(right[at]):02X}; {len(wrong)} bytes differ"
            raise FailedCheckError("cache", "index_cache", f"{_place(step, at)}: {numbers}")
    buffer = right.clone().to(called.buffer.device)
    cache, arguments = called.cache_in(buffer), (called.indexer, called.batch)
    if functions.gather is not None:
        _check_gathered(step, step.cache_in(right), cache, arguments, functions.gather)
    if rng.random() < EARLIER:
        buffer.copy_(step.written_by(lambda k, *others: attn_reference.write_index_cache(-k, *others)))
        for function in (functions.index_logits, functions.choose):
            if function is not None:
                function(called.q, called.weights, cache, *arguments)
        buffer.copy_(right)
    oracle = index_oracle(step.q, step.weights, step.cache_in(right), step.indexer, step.batch)
    logits = oracle.logits.float()
    if functions.index_logits is not None:
        q = called.q.clone()
        logits = functions.index_logits(called.q, called.weights, cache, *arguments).cpu()
        if not (torch.equal(buffer.cpu(), right) and torch.equal(bits(q), bits(called.q))):
            raise FailedCheckError("input", "index_cache", "index_logits changed the index cache or q")
        if wrong := wrong_logits(oracle, logits, step.indexer, step.batch):
            raise FailedCheckError(wrong.kind, "index_logits", wrong.message, wrong.ratio)
    if functions.select is not None:
        given = logits.float() if functions.index_logits else _with_garbage(_near(logits, rng), rng)
        if functions.ranks_nan:
            given = _with_nan(given, rng)
        selected = functions.select(on_device(given, called.q.device), *arguments).cpu()
        if message := wrong_selection(selected, given, step.indexer, step.batch):
            raise FailedCheckError("value", "selected", message)
        if functions.repeats and rng.random() < EARLIER:
            again = functions.select(on_device(given, called.q.device), *arguments).cpu()
            if not torch.equal(*(units[:, : step.rows].sort(-1).values for units in (selected, again))):
                raise FailedCheckError("property", "selected", "of the same logits, another set was selected the second time")
    if functions.choose is not None:
        chosen = functions.choose(called.q, called.weights, cache, *arguments).cpu()
        if message := wrong_selection(chosen, oracle.logits, step.indexer, step.batch, oracle.bound):
            raise FailedCheckError("value", "selected", message)


def _check_gathered(
    step: IndexStep,
    right_cache: torch.Tensor,
    cache: torch.Tensor,
    arguments: tuple[Indexer, Batch],
    gather: Callable[..., Any],
) -> None:
    right = gathered_keys(right_cache, step.indexer, step.batch, len(step.q))
    found = [tensor.cpu() for tensor in gather(cache, *arguments, len(right.codes))]
    for name, got, expected in zip(("codes", "scales"), found, (right.codes, right.scales), strict=True):
        width = expected[:1].numel() * expected.itemsize
        of_keys = (tensor.view(torch.uint8).view(len(expected), width) for tensor in (got, expected))
        wrong = torch.ne(*of_keys).nonzero()
        if len(wrong):
            message = f"gathered {name} of key {int(wrong[0, 0])} are not those of the cache; {len(wrong)} bytes differ"
            raise FailedCheckError("cache", f"gathered {name}", message)


def _near(logits: torch.Tensor, rng: random.Random) -> torch.Tensor:
    """In half of the steps, logits that are one of three neighbours in float32; otherwise the logits as they are."""
    if rng.random() < 0.5:
        return logits
    generator = torch.Generator().manual_seed(rng.getrandbits(32))
    neighbours = rng.choice((1.0, -1.0, 0.1, 1000.0)) * (1 + torch.randint(0, 3, logits.shape, generator=generator) * 2.0**-23)
    return torch.where(logits > -torch.inf, neighbours, logits)


def _with_nan(logits: torch.Tensor, rng: random.Random) -> torch.Tensor:
    """In some steps, logits of which a share is NaN, of either sign."""
    if rng.random() >= EARLIER:
        return logits
    generator = torch.Generator().manual_seed(rng.getrandbits(32))
    drawn = torch.rand(logits.shape, generator=generator)
    return torch.where(drawn < rng.choice((0.1, 0.9)), torch.where(drawn < 0.05, torch.nan, -torch.nan), logits)


def _with_garbage(logits: torch.Tensor, rng: random.Random) -> torch.Tensor:
    """Logits with rows and columns beyond the step's, and with numbers that must not be read where a row sees no unit."""
    heads, rows, units = logits.shape
    garbage = rng.choice((torch.nan, torch.inf, -torch.inf, 3e38))
    wide = torch.full((heads, rows + 1, units + rng.choice((0, 1, MAX_PADDING))), garbage)
    wide[:, :rows, :units] = torch.where(logits > -torch.inf, logits, garbage)
    return wide[:, :rows]


@contextmanager
def guarded(shape: tuple[int, ...], dtype: torch.dtype, about: str) -> Iterator[torch.Tensor]:
    """A tensor to write results to. Memory between its rows and around them must not change.

    Raises:
        FailedCheckError: it has changed.
    """
    *rows, columns = shape
    wide = (*(size + 1 for size in rows), columns + GUARD)
    before = canary(wide, torch.float32, "cpu") if dtype is torch.float32 else torch.full(wide, -2, dtype=dtype)
    buffer, inner = before.clone(), tuple(slice(size) for size in shape)
    yield buffer[inner]
    after = buffer.clone()
    after[inner] = before[inner]
    if len(wrong := (bits(after) != bits(before)).nonzero()):
        where = ", ".join(map(str, wrong[0].tolist()))
        raise FailedCheckError(
            "guard", about, f"it wrote to [{where}] of {about}, which has shape {shape}; {len(wrong)} elements"
        )


def _place(step: IndexStep, at: int) -> str:
    """The place of a byte of the buffer, in words."""
    cache = step.index_cache
    page = cache.stride(0) * cache.itemsize
    byte = at - int(cache.storage_offset()) * cache.itemsize
    block, byte = byte // page, byte % page
    return f"byte {byte} of block {block} of the index cache ({step.indexer.layout})"


@contextmanager
def unchanged_beyond(batch: Batch, out: torch.Tensor | None, columns: int, about: str) -> Iterator[None]:
    """A call that writes to `out` [HS, T, W] nothing but the first columns of the rows that requests own.

    Raises:
        FailedCheckError: it has written something else.
    """
    before = None if out is None else out.clone()
    yield
    if out is None or before is None:
        return
    own = slice(None), slice(int(batch.query_start_loc[-1])), slice(columns)
    before[own] = out[own]
    if len(wrong := (bits(out) != bits(before)).nonzero()):
        message = f"it wrote to {wrong[0].tolist()} of {about}: a row of no request, or a column past {columns}"
        raise FailedCheckError("guard", about, f"{message}; {len(wrong)} elements")


def unwritten_logits(q: torch.Tensor, indexer: Indexer, batch: Batch, *, wider: int = 0) -> torch.Tensor:
    """[HS, T, units + wider] float32, NaN: a tensor for logits."""
    units = indexer.num_units(batch.max_seq_len) + wider
    return poison((indexer.num_selections, len(q), units), torch.float32, q.device)


def unwritten_selection(logits: torch.Tensor, indexer: Indexer) -> torch.Tensor:
    """[HS, T, indexer.selected_width] int32: a tensor for a selection. Each entry is more than any unit."""
    shape = (indexer.num_selections, logits.shape[1], indexer.selected_width)
    return torch.full(shape, torch.iinfo(torch.int32).max, dtype=torch.int32, device=logits.device)
