"""A layer of DeepSeek-V4: a window of tokens in one cache, keys of 4 or of 128 tokens in another, one softmax with a sink."""

from dataclasses import replace
from types import ModuleType

import attn_optimized
import attn_reference
import pytest
import torch
from attn_contract import Batch, KVCacheView, Layer, Layout
from attn_reference import attend, paged_requests

HEADS, SIZE, BLOCK_SIZE, WINDOW = 4, 512, 64, 128
LENGTHS = ((1, 300), (3, 257), (1, 3))
"""Queries and tokens of each request. The first of three drafts stands at the last token but one of a key of 128."""
ROWS = sum(query_len for query_len, _ in LENGTHS)
CACHES = {Layout.LATENT: torch.float32, Layout.LATENT_E8M0: torch.bfloat16, Layout.LATENT_E8M0_PLANES: torch.bfloat16}
"""Layouts with the dtype of queries."""


def source(layout: Layout, num_keys: list[int], **rules) -> tuple[torch.Tensor, Layer, torch.Tensor]:
    """A cache that holds so many random keys of each request, its layer, and its block table."""
    float8 = None if layout is Layout.LATENT else torch.float8_e4m3fn
    sizes = {"num_kv_heads": 1, "head_size": SIZE, "head_size_v": SIZE}
    layer = Layer(**sizes, num_heads=HEADS, scale=SIZE**-0.5, layout=layout, kv_cache_dtype=float8, **rules)
    used = [-(-count // BLOCK_SIZE) for count in num_keys]
    itemsize = 4 if float8 is None else 1
    view = KVCacheView.dense(layout, num_blocks=sum(used) + 1, block_size=BLOCK_SIZE, itemsize=itemsize, **sizes)
    memory = (
        torch.full((view.end,), torch.nan) if float8 is None else torch.full((view.end,), 255, dtype=torch.uint8).view(float8)
    )
    kv_cache = view.tensor(memory)
    table = torch.full((len(used), max(used) + 1), -1, dtype=torch.int32)
    blocks = iter(reversed(range(1, sum(used) + 1)))
    for row, count, keys in zip(table, used, num_keys, strict=True):
        row[:count] = torch.tensor([next(blocks) for _ in range(count)], dtype=torch.int32)
        place = torch.arange(keys)
        rows = torch.randn(keys, SIZE, dtype=CACHES[layout])
        slots = row[place // BLOCK_SIZE].long() * BLOCK_SIZE + place % BLOCK_SIZE
        attn_reference.write_latent_cache(rows, rows[:, :0], kv_cache, layer, slots)
    return kv_cache, layer, table


def step(table: torch.Tensor, selected: torch.Tensor | None = None) -> Batch:
    query_lens, seq_lens = torch.tensor(LENGTHS, dtype=torch.int32).T.contiguous()
    return Batch(
        query_start_loc=torch.nn.functional.pad(query_lens.cumsum(0), (1, 0)).int(), seq_lens=seq_lens, max_query_len=3,
        max_seq_len=300, num_actual_tokens=ROWS, causal=True, block_table=table, selected=selected,
    )  # fmt: skip


def selected_entries(key_unit: int) -> torch.Tensor:
    """[1, rows, 8] int32: up to seven entries that each row sees, and -1."""
    rows = []
    for query_len, seq_len in LENGTHS:
        for p in range(seq_len - query_len, seq_len):
            units = torch.randperm((p + 1) // key_unit)[:7].int()
            rows.append(torch.nn.functional.pad(units, (0, 8 - len(units)), value=-1))
    return torch.stack(rows)[None]


def merged(kernels: ModuleType, q: torch.Tensor, sources) -> torch.Tensor:
    states = []
    for kv_cache, layer, batch in sources:
        lse = torch.empty(HEADS, ROWS)
        states += [kernels.paged_attention(q, kv_cache, layer, batch, lse=lse), lse]
    return kernels.merge_attn_states(*states)


@pytest.mark.parametrize("key_unit", [4, 128])
@pytest.mark.parametrize("layout", CACHES)
def test_both_sources_are_one_softmax(layout, key_unit, device):
    with torch.device(device):
        check_both_sources(layout, key_unit)


def check_both_sources(layout: Layout, key_unit: int) -> None:
    torch.manual_seed(0)
    q = torch.randn(ROWS, HEADS, SIZE, dtype=CACHES[layout])
    tokens = source(layout, [seq_len for _, seq_len in LENGTHS], window=(WINDOW - 1, 0), sinks=torch.randn(HEADS))
    selects = {"selection_unit": 1} if key_unit == 4 else {}
    entries = source(layout, [seq_len // key_unit for _, seq_len in LENGTHS], key_unit=key_unit, **selects)
    selected = selected_entries(key_unit) if selects else None
    sources = [(*tokens[:2], step(tokens[2])), (*entries[:2], step(entries[2], selected))]
    expected, largest = torch.empty(ROWS, HEADS, SIZE, dtype=torch.float64), 0.0
    for one, other in zip(*(paged_requests(q, *call, torch.float64) for call in sources), strict=True):
        parts = {name: torch.cat([getattr(one, name), getattr(other, name)]) for name in ("key", "value")}
        both = replace(one, **parts, visible=torch.cat([one.visible, other.visible], -1))
        expected[one.rows], largest = attend(both, tokens[1]).out, max(largest, float(parts["value"].nan_to_num(0).abs().max()))
    # outputs of both parts, the weights in them and the merged output are rounded to the dtype
    bound = 4 * torch.finfo(CACHES[layout]).eps * largest
    for kernels in (attn_reference, attn_optimized):
        assert (merged(kernels, q, sources).double() - expected).abs().max() <= bound, kernels
