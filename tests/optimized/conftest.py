"""Calls of the kernels, drawn from a few numbers, with NaN wherever they must not read and guards where they must not write."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

import attn_optimized
import attn_reference
import pytest
import torch
from attn_contract import AttentionType, Batch, KVCacheView, Layer, Layout

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
    """Builds a call from lengths: shuffled and padded blocks, q a slice of a fused qkv, garbage past the table's used part."""

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
        window: tuple[int, int] = (-1, -1),
        sinks: Sequence[float] | None = None,
        scale: float | None = None,
    ) -> PagedCall:
        generator = torch.Generator().manual_seed(0)
        blocks_used = [-(-n // block_size) for n in seq_lens]
        num_blocks = sum(blocks_used) + 2
        view = KVCacheView.dense(
            layout,
            num_blocks=num_blocks,
            block_size=block_size,
            num_kv_heads=num_kv_heads,
            head_size=head_size,
            itemsize=dtype.itemsize,
        )
        outermost = f"{layout.dims[0]}_stride"
        view = replace(view, offset=GUARD, **{outermost: getattr(view, outermost) + 3 * head_size})
        kv_cache = view.tensor(torch.full((view.end,), torch.nan, dtype=dtype))
        table = torch.tensor([-1, 2**31 - 1], dtype=torch.int32).repeat(len(seq_lens), max(blocks_used, default=0) // 2 + 1)
        free = torch.randperm(num_blocks, generator=generator).tolist()
        per_request = [causal] * len(seq_lens) if isinstance(causal, bool) else causal
        slots = kv_cache.permute([layout.dims.index(dim) for dim in ("block", "slot", "kv", "head", "dim")])
        for r, (query_len, seq_len) in enumerate(zip(query_lens, seq_lens, strict=True)):
            for i in range(blocks_used[r]):
                table[r, i] = free.pop()
            for j in range(seq_len):
                # what no query sees is a block that was freed, and holds anything
                if any(_sees(seq_len - query_len + i, j, per_request[r], window) for i in range(query_len)):
                    token = torch.randn(2, num_kv_heads, head_size, generator=generator)
                    slots[int(table[r, j // block_size]), j % block_size] = token.to(dtype)
        layer = Layer(
            num_heads=num_heads,
            num_kv_heads=num_kv_heads,
            head_size=head_size,
            scale=head_size**-0.5 if scale is None else scale,
            attn_type=attn_type,
            window=window,
            sinks=None if sinks is None else torch.tensor(sinks, device=device),
            layout=layout,
        )
        batch = _batch(
            query_lens,
            seq_lens,
            device,
            causal=causal if isinstance(causal, bool) else torch.tensor(causal, device=device),
            block_table=table.to(device),
        )
        fused = _fused(query_lens, num_heads + 2, head_size, dtype, generator).to(device)
        return PagedCall(fused[:, :num_heads], _to(device, kv_cache), layer, batch)

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
        window: tuple[int, int] = (-1, -1),
        sinks: Sequence[float] | None = None,
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
            window=window,
            sinks=None if sinks is None else torch.tensor(sinks, device=device),
        )
        return VarlenCall(q, k, v, layer, _batch(query_lens, query_lens, device, causal=False))

    return build


@pytest.fixture
def assert_agrees() -> Callable[[PagedCall | VarlenCall], None]:
    """Compares a call with the reference in float64, and every other row of its outputs with what was there before."""

    def check(call: PagedCall | VarlenCall) -> None:
        q = call.q
        num_tokens, num_heads, head_size = q.shape
        values = call.kv_cache if isinstance(call, PagedCall) else call.v
        name = "paged_attention" if isinstance(call, PagedCall) else "varlen_attention"

        guarded_out = torch.full((num_tokens, num_heads * head_size + GUARD), torch.nan, dtype=q.dtype, device=q.device)
        guarded_lse = torch.full((num_heads, num_tokens + GUARD), torch.nan, device=q.device)
        out = guarded_out[:, : num_heads * head_size]
        lse = guarded_lse[:, :num_tokens]
        assert getattr(attn_optimized, name)(*call, out=out, lse=lse, validate=True) is out

        expected = torch.full(q.shape, torch.nan, device=q.device)
        expected_lse = torch.full((num_heads, num_tokens), torch.nan, device=q.device)
        exact = [x.float() if isinstance(x, torch.Tensor) else x for x in call]
        getattr(attn_reference, name)(*exact, out=expected, lse=expected_lse, precision=torch.float64)

        # rounding of the output and of the weights, and some float32 operations: a bound, since weights sum to at most 1
        roundoff = torch.finfo(q.dtype).eps / 2
        tolerance = (2 * roundoff + 2**-18) * float(values.nan_to_num().abs().max())
        torch.testing.assert_close(
            out.reshape(q.shape).float(), expected, rtol=0, atol=tolerance, equal_nan=True, check_stride=False
        )
        torch.testing.assert_close(lse, expected_lse, rtol=2**-22, atol=2**-18, equal_nan=True, check_stride=False)
        assert guarded_out[:, num_heads * head_size :].isnan().all()
        assert guarded_lse[:, num_tokens:].isnan().all()

    return check


def _sees(position: int, key: int, causal: bool, window: tuple[int, int]) -> bool:
    left, right = window
    return (not causal or key <= position) and (left < 0 or position - key <= left) and (right < 0 or key - position <= right)


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


def _to(device: torch.device, tensor: torch.Tensor) -> torch.Tensor:
    """The same strides and offset on another device."""
    storage = torch.as_strided(tensor, (tensor.untyped_storage().nbytes() // tensor.element_size(),), (1,), 0)
    return storage.to(device).as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())
