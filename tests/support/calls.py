"""Calls of attention that a test builds from numbers of its own, with poison wherever attention must not read.

The fuzzer builds its calls in `attn_fuzz.cases.tensors`, and tests do not: a case of the fuzzer says which kind of numbers to
draw, and a test says the numbers. The fuzzer's own tests compare its tensors with calls from here and from `tests/fuzz`.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, NamedTuple

import attn_reference
import torch
from attn_contract import AttentionType, Batch, KVCacheView, Layer, Layout

UNOWNED_ROWS = 2
"""Rows after those of the last request. `num_actual_tokens` counts one of them."""
SLACK = 3
"""The distance by which `max_query_len` and `max_seq_len` exceed the longest request; a qq_bias must be as much larger."""
GARBAGE_BLOCKS = torch.tensor([-1, 2**31 - 1], dtype=torch.int32)
"""Entries of a block table past a request's last block."""
SPARE_BLOCKS = 2
"""Blocks of a cache that no request owns."""
ONE_SCALE = {"k_scale": torch.tensor(0.02), "v_scale": torch.tensor(0.03)}
"""Fixed scales of a quantized cache: one for all heads. The stored numbers are then up to 200."""
HEAD_SCALES = {"k_scale": torch.tensor([0.02, 0.04]), "v_scale": torch.tensor([0.03, 0.06])}
"""Fixed scales of a quantized cache of two KV heads, one for each."""
GAP = 48
"""Elements before a cache's first block, and after every index of its outermost dimension: a multiple of 16 bytes."""


@dataclass(frozen=True, eq=False)
class Tokens:
    """The requests of a batch: query [T, H, D], key and value [S, HK, D], each request's rows after the previous one's."""

    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    query_lens: Sequence[int]
    seq_lens: Sequence[int]


class PagedCall(NamedTuple):
    """Arguments of `paged_attention`, in its order."""

    q: torch.Tensor
    kv_cache: torch.Tensor
    layer: Layer
    batch: Batch


class VarlenCall(NamedTuple):
    """Arguments of `varlen_attention`, in its order."""

    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    layer: Layer
    batch: Batch


class Blocks(NamedTuple):
    """The places of a batch's keys in a paged cache.

    Attributes:
        table: [R, max_blocks] int32, garbage past each request's blocks.
        slots: [S] int64, the slot of every key, request after request.
        total: blocks of the cache.
    """

    table: torch.Tensor
    slots: torch.Tensor
    total: int


def joined(requests: Sequence[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]) -> Tokens:
    """Tokens of requests that are each given as query [query_len, H, D], key and value [seq_len, HK, D]."""
    query, key, value = map(torch.cat, zip(*requests, strict=True))
    return Tokens(query, key, value, [len(q) for q, _, _ in requests], [len(k) for _, k, _ in requests])


def random_tokens(
    query_lens: Sequence[int],
    seq_lens: Sequence[int],
    *,
    num_heads: int = 4,
    num_kv_heads: int = 2,
    head_size: int = 32,
    dtype: torch.dtype = torch.float32,
) -> Tokens:
    """Tokens whose numbers are standard normal, and the same in every run."""
    generator = torch.Generator().manual_seed(0)
    key, value = torch.randn(2, sum(seq_lens), num_kv_heads, head_size, generator=generator).to(dtype)
    query = torch.randn(sum(query_lens), num_heads, head_size, generator=generator).to(dtype)
    return Tokens(query, key, value, query_lens, seq_lens)


def paged_call(
    tokens: Tokens,
    *,
    layout: Layout = Layout.BLOCKS_FIRST_NHD,
    block_size: int = 16,
    gap: int = GAP,
    causal: bool | Sequence[bool] | torch.Tensor = True,
    bidirectional_ranges: torch.Tensor | Sequence[Any] | None = None,
    qq_bias: torch.Tensor | None = None,
    selected: torch.Tensor | None = None,
    device: torch.device | str = "cpu",
    **rules: Any,
) -> PagedCall:
    """A call of paged attention whose keys lie in shuffled blocks.

    Poison is NaN in every row that no request owns and in every slot that holds no key, and block ids that do not exist.

    Args:
        gap: elements before the cache's first block and between the indices of its outermost dimension; 0: a dense cache.
        causal: one flag for the batch, or one for each request.
        bidirectional_ranges: [R, max_ranges, 2].
        rules: other fields of the layer. `scale` is head_size ** -0.5 unless given, and a quantized cache without scales has
            one scale for each token and head.
    """
    blocks = shuffled_blocks(tokens.seq_lens, block_size)
    if rules.get("kv_cache_dtype") and "k_scale" not in rules and not layout.has_inline_scales:
        shape = (blocks.total, block_size, tokens.key.shape[1])
        rules |= {name: torch.full(shape, torch.nan) for name in ("k_scale_cache", "v_scale_cache")}
    layer = _layer(tokens, device, layout=layout, **rules)
    kv_cache = _poisoned_cache(layer, tokens.key, blocks.total, block_size, gap, device)
    k, v, slots = (x.to(device) for x in (tokens.key, tokens.value, blocks.slots))
    write_keys(k, v, kv_cache, layer, slots)
    step = {
        "causal": causal if isinstance(causal, bool) else torch.as_tensor(causal),
        "block_table": blocks.table,
        "bidirectional_ranges": None if bidirectional_ranges is None else torch.as_tensor(bidirectional_ranges).int(),
        "qq_bias": qq_bias,
        "selected": selected,
    }
    (q,) = padded_rows(tokens.query, device=device)
    if layer.q_scale is not None:
        q = q.to(layer.kv_cache_dtype)
    return PagedCall(q, kv_cache, layer, _batch(tokens, device, **step))


def varlen_call(
    tokens: Tokens,
    *,
    attn_type: AttentionType = AttentionType.ENCODER,
    device: torch.device | str = "cpu",
    **rules: Any,
) -> VarlenCall:
    """A call of dense varlen attention; q, k and v are slices of one tensor, with NaN in the rows that no request owns."""
    q, k, v = padded_rows(tokens.query, tokens.key, tokens.value, device=device)
    v = v[..., : rules.get("head_size_v")]
    return VarlenCall(q, k, v, _layer(tokens, device, attn_type=attn_type, **rules), _batch(tokens, device, causal=False))


def one_request(query_len: int, seq_len: int, *, causal: bool = False, **tensors: torch.Tensor) -> Batch:
    """A batch of one request, without poison: its lengths are the bounds, and no row follows."""
    return Batch(
        query_start_loc=torch.tensor([0, query_len], dtype=torch.int32),
        seq_lens=torch.tensor([seq_len], dtype=torch.int32),
        max_query_len=query_len,
        max_seq_len=seq_len,
        num_actual_tokens=query_len,
        causal=causal,
        **tensors,
    )


def shuffled_blocks(seq_lens: Sequence[int], block_size: int) -> Blocks:
    """Blocks in no order for requests of these lengths, and spare ones that belong to none."""
    used = [-(-seq_len // block_size) for seq_len in seq_lens]
    total = sum(used) + SPARE_BLOCKS
    shuffled = torch.randperm(total, generator=torch.Generator().manual_seed(0))[: sum(used)].split(used)
    width = max(used, default=0) + 1
    table = GARBAGE_BLOCKS.repeat(len(used), width)[:, :width]
    slots = [torch.empty(0, dtype=torch.int64)]
    for row, blocks, seq_len in zip(table, shuffled, seq_lens, strict=True):
        row[: len(blocks)] = blocks
        position = torch.arange(seq_len)
        slots.append(blocks[position // block_size] * block_size + position % block_size)
    return Blocks(table, torch.cat(slots), total)


def is_new(query_lens: Sequence[int], seq_lens: Sequence[int]) -> torch.Tensor:
    """[S] bool: which keys, request after request, a step brings: the last ones, as many as there are queries."""
    return torch.cat([torch.arange(n) >= n - query_len for query_len, n in zip(query_lens, seq_lens, strict=True)])


def padded_rows(*parts: torch.Tensor, device: torch.device | str = "cpu") -> tuple[torch.Tensor, ...]:
    """Slices [T + UNOWNED_ROWS, heads, D] of one tensor, as of a fused q, k and v; NaN in what no part fills.

    Args:
        parts: [T, heads, D] each.
    """
    heads = [part.shape[1] for part in parts]
    rows, _, head_size = parts[0].shape
    fused = parts[0].new_full((rows + UNOWNED_ROWS, sum(heads) + 1, head_size), torch.nan)
    fused[:rows, :-1] = torch.cat(parts, dim=1)
    return fused.to(device)[:, :-1].split(heads, dim=1)


def with_idle_strides(tensor: torch.Tensor, stride: int = 7) -> torch.Tensor:
    """The same elements. The stride of a dimension of one element reaches none, and is `stride`."""
    steps = zip(tensor.shape, tensor.stride(), strict=True)
    return tensor.as_strided(tensor.shape, [stride if size == 1 else step for size, step in steps])


def forget(call: PagedCall, slots: torch.Tensor) -> PagedCall:
    """Fill slots of the call's cache with NaN, as of a block that was freed; returns the call."""
    layer = call.layer
    dtype = call.q.dtype if layer.q_scale is None else torch.float32
    nan = torch.full((len(slots), layer.num_kv_heads, layer.head_size), torch.nan, dtype=dtype, device=call.q.device)
    write_keys(nan, nan, call.kv_cache, layer, slots.to(call.q.device))
    return call


def write_keys(k: torch.Tensor, v: torch.Tensor, kv_cache: torch.Tensor, layer: Layer, slots: torch.Tensor) -> None:
    """Have the reference write k and v to a cache. In a latent cache V is the first dims of k, and v is not written.

    If V is of another width, it is the first dims of v and of -v after it.
    """
    if layer.layout is not None and layer.layout.has_latent_value:
        kv_c, k_pe = k[:, 0].tensor_split([layer.v_head_size], dim=1)
        attn_reference.write_latent_cache(kv_c, k_pe, kv_cache, layer, slots)
    else:
        attn_reference.write_kv_cache(k, torch.cat([v, -v], dim=-1)[..., : layer.v_head_size], kv_cache, layer, slots)


def unseen_slots(call: PagedCall) -> torch.Tensor:
    """[N] int64: slots of the requests' keys that no query of theirs sees, by the reference's visibility."""
    assert call.batch.block_table is not None
    batch, block_size = call.batch, call.layer.view_of(call.kv_cache).block_size
    hidden = [torch.ones(seq_len, dtype=torch.bool) for seq_len in batch.seq_lens.tolist()]
    for request in attn_reference.paged_requests(*call, torch.float32):
        hidden[request.index] &= ~request.seen.any(1).cpu()
    slots = [torch.empty(0, dtype=torch.int64)]
    for blocks, is_hidden in zip(batch.block_table.cpu().long(), hidden, strict=True):
        position = is_hidden.nonzero().flatten()
        slots.append(blocks[position // block_size] * block_size + position % block_size)
    return torch.cat(slots)


def _layer(tokens: Tokens, device: torch.device | str, **fields: Any) -> Layer:
    """A layer of the tokens' sizes, its tensors on the device; `sinks` may be a list."""
    num_heads, head_size = tokens.query.shape[1:]
    if fields.get("sinks") is not None:
        fields["sinks"] = torch.as_tensor(fields["sinks"])
    layer = Layer(
        num_heads=num_heads,
        num_kv_heads=tokens.key.shape[1],
        head_size=head_size,
        **{"scale": head_size**-0.5, **fields},
    )
    return dataclasses.replace(layer, **{name: tensor.to(device) for name, tensor in layer.tensors.items()})


def _poisoned_cache(
    layer: Layer, key: torch.Tensor, num_blocks: int, block_size: int, gap: int, device: torch.device | str
) -> torch.Tensor:
    """A cache for rows like `key` with all bits set, which is NaN in all floating types but e4m3fnuz."""
    assert layer.layout is not None
    dtype = layer.kv_cache_dtype or key.dtype
    view = KVCacheView.dense(
        layer.layout,
        num_blocks=num_blocks,
        block_size=block_size,
        num_kv_heads=layer.num_kv_heads,
        head_size=layer.head_size,
        itemsize=dtype.itemsize,
        head_size_v=layer.head_size_v,
    )
    outermost = f"{layer.layout.dims[0]}_stride"
    view = dataclasses.replace(view, offset=gap, **{outermost: getattr(view, outermost) + gap})
    return view.tensor(torch.full((view.end * dtype.itemsize,), 0xFF, dtype=torch.uint8, device=device).view(dtype))


def _batch(tokens: Tokens, device: torch.device | str, *, causal: bool | torch.Tensor, **tensors: torch.Tensor | None) -> Batch:
    """Loose bounds on the tokens' lengths, and the tensors on the device."""
    query_start_loc = torch.tensor([0, *tokens.query_lens]).cumsum(0).int()
    return Batch(
        query_start_loc=query_start_loc.to(device),
        seq_lens=torch.tensor(tokens.seq_lens, dtype=torch.int32, device=device),
        max_query_len=max(tokens.query_lens, default=0) + SLACK,
        max_seq_len=max(tokens.seq_lens, default=0) + SLACK,
        num_actual_tokens=len(tokens.query) + UNOWNED_ROWS - 1,
        causal=causal if isinstance(causal, bool) else causal.to(device),
        **{name: None if tensor is None else tensor.to(device) for name, tensor in tensors.items()},
    )


def op_arguments(call: PagedCall | VarlenCall) -> dict[str, Any]:
    """Arguments of the call's torch op by name, without its outputs and without options that are off."""
    ops = torch.ops.attn_parity
    op = ops.paged_attention.default if isinstance(call, PagedCall) else ops.varlen_attention.default
    given = {**call._asdict(), **vars(call.layer), **vars(call.batch), "causal_per_request": None}
    if isinstance(call.batch.causal, torch.Tensor):
        given |= {"causal": None, "causal_per_request": call.batch.causal}
    arguments = {}
    for argument in op._schema.arguments:
        value = given.get(argument.name)
        value = list(value) if isinstance(value, tuple) else str(value) if isinstance(value, StrEnum) else value
        is_off = argument.has_default_value() and not isinstance(value, torch.Tensor) and value == argument.default_value
        if argument.name in given and not is_off:
            arguments[argument.name] = value
    return arguments
