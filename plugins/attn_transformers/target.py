"""The plugin as a target: drawn steps as transformers would make them, with keys and values that went through a PagedCache.

A step becomes one padded batch, in which only the mask says what a request sees. Everything that the mask hides is NaN: padding
in front of keys and after them, and queries that no request has. Importing this module does not import transformers.
"""

import dataclasses
import functools
import itertools
import random
from types import SimpleNamespace
from typing import Any, NamedTuple

import attn_reference
import torch
from attn_contract import AttentionType, Batch, ContractError, Layer, Layout
from attn_fuzz import extras
from attn_fuzz.errors import FailedCheckError
from attn_fuzz.targets import Engine, Support, Target
from attn_fuzz.targets.rng import rng_of_call
from attn_fuzz.targets.triton import TRITON

from attn_transformers.registration import IMPLEMENTATIONS, register

QUANTIZED = (torch.int8, torch.float8_e4m3fn, torch.float8_e4m3fnuz)
MAX_ERROR = 1 / 8
"""The largest error, relative to the largest element of a token and head. The types in QUANTIZED round by less than this; a
lost scale has a larger error."""


class Padded(NamedTuple):
    """A step of B requests as transformers passes it.

    Args:
        query: [B, H, Q, D].
        key, value: [B, HK, K, D].
        seen: [B, 1, Q, K] bool.
        bias: [B, H, Q, K] float32, ALiBi; None without.
        rows: for each request its rows of q, and the index of its first query.
    """

    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    seen: torch.Tensor
    bias: torch.Tensor | None
    rows: list[tuple[slice, int]]


def attention(q, k, v, kv_cache, layer: Layer, batch: Batch, *, out, lse) -> None:
    from transformers import AttentionInterface

    register()
    rng = rng_of_call(q, batch)
    if kv_cache is None:
        requests = attn_reference.varlen_requests(q, k, v, layer, batch, torch.float32)
    else:
        requests = attn_reference.paged_requests(q, kv_cache, layer, batch, torch.float32)
    step = _padded(list(requests), q, layer, rng)
    key, value = _through_pages(step.key, step.value, rng)
    is_causal = layer.attn_type is AttentionType.DECODER
    mask, more = _mask_of(step, is_causal, rng)
    function: Any = AttentionInterface()[rng.choice([*IMPLEMENTATIONS])]
    module: Any = SimpleNamespace(is_causal=is_causal)
    rules = {"softcap": layer.logits_soft_cap, "s_aux": layer.sinks}
    if layer.window[0] >= 0 and rng.random() < 0.5:
        rules["sliding_window"] = layer.window[0] + 1
    found, _ = function(module, step.query, key, value, mask, scaling=layer.scale, **rules, **more)
    hidden = ~step.seen[:, 0].any(2)
    if found[hidden].any():
        raise FailedCheckError("property", "padding", "a query that sees no key has an output that is not 0")
    for row, (rows, begin) in enumerate(step.rows):
        out.view(q.shape)[rows] = found[row, begin : begin + rows.stop - rows.start]


def _padded(requests: list[attn_reference.Request], q: torch.Tensor, layer: Layer, rng: random.Random) -> Padded:
    count = len(requests)
    num_queries = max(len(one.query) for one in requests) + rng.choice((0, 0, 2))
    num_keys = max(len(one.key) for one in requests) + rng.choice((0, 0, 3))
    query = q.new_full((count, layer.num_heads, num_queries, layer.head_size), torch.nan)
    key, value = (q.new_full((count, layer.num_kv_heads, num_keys, layer.head_size), torch.nan) for _ in range(2))
    seen = torch.zeros((count, 1, num_queries, num_keys), dtype=torch.bool, device=q.device)
    has_bias = any(one.bias is not None for one in requests)
    bias = torch.zeros((count, layer.num_heads, num_queries, num_keys), device=q.device) if has_bias else None
    rows = []
    for row, one in enumerate(requests):
        begin = rng.choice((0, num_queries - len(one.query)))
        first = rng.choice((0, num_keys - len(one.key)))
        queries, keys = slice(begin, begin + len(one.query)), slice(first, first + len(one.key))
        query[row, :, queries] = one.query.transpose(0, 1).to(q.dtype)
        visible = one.seen[..., None]
        for padded, own in ((key, one.key), (value, one.value)):
            padded[row, :, keys] = torch.where(visible, own, torch.nan).transpose(0, 1).to(q.dtype)
        seen[row, 0, queries, keys] = one.visible
        if bias is not None and one.bias is not None:
            # models count from another key, and a number added to a row changes no softmax; float32 would round too much
            shifts = [0 if q.dtype == torch.float32 else rng.randint(-64, 64) for _ in one.query]
            shifted = one.bias + torch.tensor(shifts, device=q.device)[:, None]
            bias[row, :, queries, keys] = torch.where(one.visible, shifted, 0)
        rows.append((one.rows, begin))
    return Padded(query, key, value, seen, bias, rows)


def _mask_of(step: Padded, is_causal: bool, rng: random.Random) -> tuple[torch.Tensor | None, dict[str, Any]]:
    """The mask as bools, as addends of logits, or none if it hides nothing more than causality; and a separate bias."""
    seen = step.seen
    needs_none = torch.ones_like(seen).tril() if is_causal and seen.shape[2] > 1 else torch.ones_like(seen)
    more = {} if step.bias is None else {"position_bias": step.bias}
    if torch.equal(seen, needs_none) and rng.random() < 0.5:
        return None, more
    if rng.random() < 0.5:
        return seen, more
    hides = rng.choice((-torch.inf, torch.finfo(torch.float32).min))
    mask = torch.zeros(seen.shape, device=seen.device).masked_fill(~seen, hides)
    return (mask, more) if step.bias is None or rng.random() < 0.5 else (mask + step.bias, {})


def _through_pages(key: torch.Tensor, value: torch.Tensor, rng: random.Random) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and values [B, HK, K, D] as a PagedCache gives them back, bit by bit.

    They are written in several steps, so that pages grow. Some more rows begin as copies of rows again and again, as beams do,
    and then write other numbers. A quantized cache is tried, too.
    """
    from attn_transformers.paged_cache import PagedCache

    rows, num_keys, head_size = len(key), key.shape[2], key.shape[3]
    more = rng.choice((0, 1, 2))
    cuts = sorted({0, num_keys, *(rng.randint(1, num_keys) for _ in range(rng.randint(0, 3)))})
    for dtype in (rng.choice(QUANTIZED), None):
        options = _options(head_size, dtype, key, rng)
        if options is None:
            continue
        cache: Any = PagedCache(**options, kv_cache_dtype=dtype)
        own = [tensor if dtype is None else tensor.nan_to_num() for tensor in (key, value)]
        kept = [tensor[[0] * (rows + more), :, :0] for tensor in own]
        got: Any = None
        for begin, end in itertools.pairwise(cuts):
            beams = [*range(rows), *(rng.randrange(rows) for _ in range(more))]
            if begin:
                cache.reorder_cache(torch.tensor(beams, device=key.device))
            new = [torch.cat([tensor[:, :, begin:end], -tensor[beams[rows:], :, begin:end]]) for tensor in own]
            kept = [torch.cat([before[beams], after], dim=2) for before, after in zip(kept, new, strict=True)]
            got = cache.update(*new, 0)
        for name, found, expected in zip(("keys", "values"), got, kept, strict=True):
            if (wrong := _wrong(found, expected, dtype)) is not None:
                what = f"a PagedCache of {options} and {dtype or expected.dtype}, filled up to {cuts[1:]}"
                raise FailedCheckError("property", f"PagedCache, {name}", f"{what}: {name} are off by {wrong:.3g}")
        if dtype is None:
            return got[0][:rows], got[1][:rows]
    raise AssertionError("no layout")


def _options(head_size: int, dtype: torch.dtype | None, key: torch.Tensor, rng: random.Random) -> dict[str, Any] | None:
    """A layout and a block size that a cache of such elements can have."""
    itemsize = (dtype or key.dtype).itemsize

    def fits(layout: Layout, block_size: int) -> bool:
        if layout.has_latent_value or (layout.has_inline_scales and dtype is None):
            return False
        try:
            layout.check_sizes(head_size, block_size, itemsize)
        except ContractError:
            return False
        return True

    fitting = [(layout, size) for layout in Layout for size in (1, 2, 3, 16) if fits(layout, size)]
    if not fitting:
        return None
    layout, block_size = rng.choice(fitting)
    return {"layout": layout, "block_size": block_size}


def _wrong(found: torch.Tensor, expected: torch.Tensor, dtype: torch.dtype | None) -> float | None:
    """The error of the numbers that a cache returns; None if they are right. Unless it is quantized, all bits must be equal."""
    error = (found.float() - expected.float()).abs()
    if dtype is None:
        same = (found == expected) | (found.isnan() & expected.isnan())
        return None if same.all() else float(error.nan_to_num(torch.inf).max())
    allowed = expected.float().abs().amax(dim=3, keepdim=True) * MAX_ERROR
    return float(error.max()) if (error > allowed).any() else None


def _support(device: str) -> Support:
    return Support(
        attn_types=(AttentionType.DECODER, AttentionType.ENCODER, AttentionType.ENCODER_DECODER),
        dtypes=("float32", "float16", "bfloat16"),
        layouts=(Layout.BLOCKS_FIRST_NHD,),
        rules=("non_causal", "window", "chunked_local", "bidirectional_ranges", "logits_soft_cap", "sinks", "alibi_slopes"),
        engine=Engine(
            more_queries_than_keys=False, empty_requests=False, empty_batches=False, mixed_alibi=False, saturated=False
        ),
        max_tokens=48,
        max_seq_len=96,
    )


TRANSFORMERS_ATTENTION = Target(
    name="transformers-attention",
    description="the transformers plugin: its registered functions on masks, biases and padding, and its PagedCache",
    attention=attention,
    support=_support,
    rounding=lambda device: dataclasses.replace(TRITON.rounding(device), exact_division=False),
    refuses=False,
    unavailable=lambda device: TRITON.unavailable(device) or _missing(),
    forget=TRITON.forget,
)


@functools.cache
def _missing() -> str | None:
    try:
        extras.require("transformers")
    except ModuleNotFoundError as error:
        return str(error)
    return None
