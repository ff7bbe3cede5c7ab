"""Calls of the kernels, drawn from a few numbers, with NaN wherever they must not read and guards where they must not write."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import attn_optimized
import attn_reference
import pytest
import torch
from attn_contract import AttentionType, Batch, KVCacheView, Layer, Layout
from attn_reference.masks import visible

UNOWNED_ROWS = 3
GUARD = 5


class PagedCall(NamedTuple):
    q: torch.Tensor
    kv_cache: torch.Tensor
    layer: Layer
    batch: Batch


class VarlenCall(NamedTuple):
    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    layer: Layer
    batch: Batch


@pytest.fixture(scope="session")
def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Every dtype that is right here: the interpreter multiplies bfloat16 wrongly."""
    if "dtype" in metafunc.fixturenames:
        dtypes = [torch.float32, torch.float16] + [torch.bfloat16] * torch.cuda.is_available()
        metafunc.parametrize("dtype", dtypes, ids=lambda dtype: str(dtype).removeprefix("torch."))


@pytest.fixture
def paged_call(device: torch.device) -> Callable[..., PagedCall]:
    """Builds a call from lengths: shuffled and padded blocks, q a slice of a fused qkv, garbage past the table's used part.

    What no query sees is a block that was freed, and holds NaN.
    """

    def build(
        query_lens: Sequence[int],
        seq_lens: Sequence[int],
        *,
        num_heads: int = 4,
        num_kv_heads: int = 2,
        head_size: int = 32,
        block_size: int = 16,
        dtype: torch.dtype = torch.float32,
        layout: Layout = Layout.BLOCKS_FIRST_NHD,
        attn_type: AttentionType = AttentionType.DECODER,
        causal: bool | Sequence[bool] = True,
        kv_cache_dtype: torch.dtype | None = None,
        scales: str = "token",
        ranges: Sequence[Sequence[tuple[int, int]]] | None = None,
        qq_bias: torch.Tensor | None = None,
        sinks: Sequence[float] | None = None,
        scale: float | None = None,
        **rules: Any,
    ) -> PagedCall:
        generator = torch.Generator().manual_seed(0)
        blocks_used = [-(-n // block_size) for n in seq_lens]
        num_blocks = sum(blocks_used) + 2
        stored = kv_cache_dtype or dtype
        view = KVCacheView.dense(
            layout,
            num_blocks=num_blocks,
            block_size=block_size,
            num_kv_heads=num_kv_heads,
            head_size=head_size,
            itemsize=stored.itemsize,
        )
        outermost = f"{layout.dims[0]}_stride"
        view = replace(view, offset=16, **{outermost: getattr(view, outermost) + 3 * head_size})
        raw = torch.full((view.end * stored.itemsize,), 0xFF, dtype=torch.uint8).view(stored)
        layer = Layer(
            num_heads=num_heads,
            num_kv_heads=num_kv_heads,
            head_size=head_size,
            scale=head_size**-0.5 if scale is None else scale,
            attn_type=attn_type,
            sinks=None if sinks is None else torch.tensor(sinks),
            layout=layout,
            kv_cache_dtype=kv_cache_dtype,
            **_scales(view, scales if kv_cache_dtype and not layout.has_inline_scales else None),
            **rules,
        )
        table = torch.tensor([-1, 2**31 - 1], dtype=torch.int32).repeat(len(seq_lens), max(blocks_used, default=0) // 2 + 1)
        free = torch.randperm(num_blocks, generator=generator).tolist()
        on_host = _batch(
            query_lens,
            seq_lens,
            torch.device("cpu"),
            causal=causal if isinstance(causal, bool) else torch.tensor(causal),
            bidirectional_ranges=None if ranges is None else torch.tensor(ranges, dtype=torch.int32),
        )
        slots = []
        for r, (query_len, seq_len) in enumerate(zip(query_lens, seq_lens, strict=True)):
            for i in range(blocks_used[r]):
                table[r, i] = free.pop()
            key = torch.arange(seq_len)
            seen = visible(torch.arange(query_len) + seq_len - query_len, key, layer, on_host, r).any(0)
            slots.append(torch.where(seen, table[r].long()[key // block_size] * block_size + key % block_size, -1))
        slot_mapping = torch.cat(slots) if slots else torch.empty(0, dtype=torch.int64)
        k, v = torch.randn(2, len(slot_mapping), num_kv_heads, head_size, generator=generator).to(dtype)
        attn_reference.write_kv_cache(k, v, view.tensor(raw), layer, slot_mapping)
        batch = _batch(
            query_lens,
            seq_lens,
            device,
            causal=causal if isinstance(causal, bool) else torch.tensor(causal, device=device),
            block_table=table.to(device),
            bidirectional_ranges=None if ranges is None else torch.tensor(ranges, dtype=torch.int32, device=device),
            qq_bias=None if qq_bias is None else qq_bias.to(device),
        )
        fused = _fused(query_lens, num_heads + 2, head_size, dtype, generator).to(device)
        on_device = {name: tensor.to(device) for name, tensor in layer.tensors.items()}
        return PagedCall(fused[:, :num_heads], view.tensor(raw.to(device)), replace(layer, **on_device), batch)

    return build


@pytest.fixture
def varlen_call(device: torch.device) -> Callable[..., VarlenCall]:
    """Builds a call from lengths: q, k and v are slices of one fused tensor."""

    def build(
        query_lens: Sequence[int],
        *,
        num_heads: int = 4,
        num_kv_heads: int = 2,
        head_size: int = 32,
        dtype: torch.dtype = torch.float32,
        attn_type: AttentionType = AttentionType.ENCODER,
        sinks: Sequence[float] | None = None,
        **rules: Any,
    ) -> VarlenCall:
        generator = torch.Generator().manual_seed(0)
        fused = _fused(query_lens, num_heads + 2 * num_kv_heads, head_size, dtype, generator).to(device)
        q, k, v = fused.split([num_heads, num_kv_heads, num_kv_heads], dim=1)
        layer = Layer(
            num_heads=num_heads,
            num_kv_heads=num_kv_heads,
            head_size=head_size,
            scale=head_size**-0.5,
            attn_type=attn_type,
            sinks=None if sinks is None else torch.tensor(sinks, device=device),
            **{name: value.to(device) if isinstance(value, torch.Tensor) else value for name, value in rules.items()},
        )
        return VarlenCall(q, k, v, layer, _batch(query_lens, query_lens, device, causal=False))

    return build


@pytest.fixture
def assert_agrees() -> Callable[[PagedCall | VarlenCall], None]:
    """Compares a call with the reference in float64, and every other row of its outputs with what was there before."""

    def check(call: PagedCall | VarlenCall, attend: Callable | None = None) -> None:
        q = call.q
        num_tokens, num_heads, head_size = q.shape
        name = "paged_attention" if isinstance(call, PagedCall) else "varlen_attention"

        out_dtype = q.dtype if call.layer.output_scale is None else torch.float8_e4m3fn
        guarded_out = torch.full((num_tokens, num_heads * head_size + GUARD), torch.nan, device=q.device).to(out_dtype)
        guarded_lse = torch.full((num_heads, num_tokens + GUARD), torch.nan, device=q.device)
        out = guarded_out[:, : num_heads * head_size]
        lse = guarded_lse[:, :num_tokens]
        attend = attend or getattr(attn_optimized, name)
        assert attend(*call, out=out, lse=lse, validate=True) is out

        *tensors, layer, batch = call
        exact = (*tensors, replace(layer, output_scale=None), batch)
        expected = torch.full(q.shape, torch.nan, dtype=q.dtype, device=q.device)
        expected_lse = torch.full((num_heads, num_tokens), torch.nan, device=q.device)
        getattr(attn_reference, name)(*exact, out=expected, lse=expected_lse, precision=torch.float64)

        # rounding of the weights and of both outputs, and some float32 operations: a bound, since weights sum to at most 1
        roundoff = torch.finfo(q.dtype).eps + torch.finfo(out_dtype).eps / 2
        scale = 1.0 if call.layer.output_scale is None else call.layer.output_scale
        largest = 5.0  # of the standard normal numbers in the cache
        torch.testing.assert_close(
            out.reshape(q.shape).float() * scale,
            expected.float(),
            rtol=0,
            atol=(roundoff + 2**-18) * largest,
            equal_nan=True,
            check_stride=False,
        )
        torch.testing.assert_close(lse, expected_lse, rtol=2**-21, atol=2**-17, equal_nan=True, check_stride=False)
        assert guarded_out[:, num_heads * head_size :].float().isnan().all()
        assert guarded_lse[:, num_tokens:].isnan().all()

    return check


def _scales(view: KVCacheView, kind: str | None) -> dict[str, torch.Tensor]:
    if kind == "token":
        shape = (view.num_blocks, view.block_size, view.num_kv_heads)
        return {name: torch.full(shape, torch.nan) for name in ("k_scale_cache", "v_scale_cache")}
    if kind:
        heads = {"tensor": (), "head": (view.num_kv_heads,)}[kind]
        return {"k_scale": torch.full(heads, 0.02).cumsum(-1), "v_scale": torch.full(heads, 0.03).cumsum(-1)}
    return {}


def _fused(
    query_lens: Sequence[int], num_heads: int, head_size: int, dtype: torch.dtype, generator: torch.Generator
) -> torch.Tensor:
    rows = torch.randn(sum(query_lens) + UNOWNED_ROWS, num_heads, head_size, generator=generator)
    rows[sum(query_lens) :] = torch.nan
    return rows.to(dtype)


def _batch(query_lens: Sequence[int], seq_lens: Sequence[int], device: torch.device, **fields) -> Batch:
    starts = torch.tensor([0, *query_lens]).cumsum(0)
    return Batch(
        query_start_loc=starts.int().to(device),
        seq_lens=torch.tensor(seq_lens, dtype=torch.int32, device=device),
        max_query_len=max(query_lens, default=0) + 7,
        max_seq_len=max(seq_lens, default=0) + 100,
        num_actual_tokens=sum(query_lens) + UNOWNED_ROWS - 1,
        **fields,
    )
