"""Steps of an engine as a backend sees them, and their comparison with the reference."""

import copy
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import attn_reference
import pytest
import torch
from attn_contract import AttentionType, Batch, KVCacheView, Layer, Layout
from attn_fuzz.interpreted.aiter import interpreted
from attn_optimized.aiter_adapter import Aiter, find_aiter, import_aiter
from attn_optimized.backends import AttentionBackend, CommonAttentionMetadata

sys.path.insert(0, str(Path(__file__).parents[1]))  # for `aiter_2026_08`

from aiter_2026_08 import Call, stand_in

UNOWNED_ROWS = 2


@dataclass(frozen=True, eq=False, kw_only=True)
class Step:
    """One step of one layer: its cache holds the contexts, and this step's tokens are still to be written.

    `batch` is what the layer must see of it, for the reference; backends make theirs from `common`.
    """

    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    kv_cache: torch.Tensor | None
    layer: Layer
    block_size: int | None
    common: CommonAttentionMetadata
    batch: Batch

    @property
    def constructor(self) -> dict[str, Any]:
        return {"dtype": self.query.dtype, "block_size": self.block_size}


@pytest.fixture
def calls() -> list[Call]:
    """What was called of AITER, in order."""
    return []


@pytest.fixture
def aiter(calls: list[Call]) -> Aiter:
    """AITER of 2026-08, on a CPU: see aiter_2026_08."""
    return stand_in(calls)


@pytest.fixture(scope="session")
def installed_aiter() -> Aiter:
    """The AITER that is installed, as it is on an AMD GPU; where there is none, its unified_attention is interpreted."""
    found = import_aiter() if torch.cuda.is_available() else find_aiter()
    if found.missing is not None:
        pytest.skip(found.missing)
    return found if torch.cuda.is_available() else interpreted(found)


@pytest.fixture
def make_step(device: torch.device) -> Callable[..., Step]:
    """Builds a step from lengths: blocks in any order, NaN in all slots that nobody wrote and in all rows that nobody owns.

    For cross-attention the encoder's lengths take the place of `seq_lens`, and this step brings all of its tokens.
    """

    def make(
        query_lens: Sequence[int],
        seq_lens: Sequence[int],
        *,
        attn_type: AttentionType = AttentionType.DECODER,
        num_heads: int = 4,
        num_kv_heads: int = 2,
        head_size: int = 64,
        block_size: int = 16,
        dtype: torch.dtype = torch.float16,
        layout: Layout | None = Layout.BLOCKS_FIRST_NHD,
        causal: bool | torch.Tensor = True,
        sinks: Sequence[float] | None = None,
        host_lens: bool = True,
        **rules: Any,
    ) -> Step:
        generator = torch.Generator().manual_seed(0)
        is_cross = attn_type is AttentionType.ENCODER_DECODER
        layer = Layer(
            num_heads=num_heads,
            num_kv_heads=num_kv_heads,
            head_size=head_size,
            scale=head_size**-0.5,
            attn_type=attn_type,
            layout=layout if attn_type.reads_cache else None,
            sinks=None if sinks is None else torch.tensor(sinks),
            **rules,
        )
        blocks = [-(-seq_len // block_size) for seq_len in seq_lens]
        table = torch.full((len(seq_lens), max(blocks) + 1), 2**31 - 1, dtype=torch.int32)
        free = torch.randperm(sum(blocks) + 1, generator=generator).tolist()
        slots = []
        for r, seq_len in enumerate(seq_lens):
            table[r, : blocks[r]] = torch.tensor([free.pop() for _ in range(blocks[r])])
            position = torch.arange(seq_len)
            slots.append(table[r, position // block_size].long() * block_size + position % block_size)
        new = [seq_len if is_cross else query_len for query_len, seq_len in zip(query_lens, seq_lens, strict=True)]

        num_rows = sum(query_lens) + UNOWNED_ROWS
        query = torch.randn(num_rows, num_heads, head_size, generator=generator).to(dtype)
        key, value = torch.randn(2, sum(new) + UNOWNED_ROWS, num_kv_heads, head_size, generator=generator).to(dtype)
        for tensor, owned in ((query, sum(query_lens)), (key, sum(new)), (value, sum(new))):
            tensor[owned:] = torch.nan

        kv_cache = None
        if layer.layout is not None:
            stored = layer.kv_cache_dtype or dtype
            view = KVCacheView.dense(
                layer.layout,
                num_blocks=sum(blocks) + 1,
                block_size=block_size,
                num_kv_heads=num_kv_heads,
                head_size=head_size,
                itemsize=stored.itemsize,
            )
            kv_cache = view.tensor(torch.full((view.end * stored.itemsize,), 0xFF, dtype=torch.uint8).view(stored))
            context = torch.cat([slot[: len(slot) - count] for slot, count in zip(slots, new, strict=True)])
            old = torch.randn(2, len(context), num_kv_heads, head_size, generator=generator).to(dtype)
            attn_reference.write_kv_cache(*old, kv_cache, layer, context)
        lens = torch.tensor(query_lens if is_cross else seq_lens, dtype=torch.int32)
        key_lens = torch.tensor(seq_lens, dtype=torch.int32)
        query_start_loc = torch.tensor([0, *query_lens]).cumsum(0).int()
        causal = causal.to(device) if isinstance(causal, torch.Tensor) else causal
        common = CommonAttentionMetadata(
            query_start_loc=query_start_loc.to(device),
            query_start_loc_cpu=query_start_loc,
            seq_lens=lens.to(device),
            seq_lens_cpu=lens if host_lens else None,
            num_actual_tokens=sum(query_lens) + UNOWNED_ROWS - 1,
            max_query_len=max(query_lens),
            max_seq_len=max(lens.tolist()) + 5,
            block_table_tensor=table.to(device),
            slot_mapping=torch.cat([slot[len(slot) - count :] for slot, count in zip(slots, new, strict=True)]).to(device),
            causal=causal,
            encoder_seq_lens=key_lens.to(device) if is_cross else None,
            max_encoder_seq_len=max(seq_lens) + 5 if is_cross else None,
        )
        batch = Batch(
            query_start_loc=query_start_loc.to(device),
            seq_lens=key_lens.to(device),
            max_query_len=max(query_lens),
            max_seq_len=max(seq_lens),
            num_actual_tokens=sum(query_lens),
            causal=causal if attn_type is AttentionType.DECODER else False,
            block_table=table.to(device) if attn_type.reads_cache else None,
        )
        return Step(
            query=query.to(device),
            key=key.to(device),
            value=value.to(device),
            kv_cache=None if kv_cache is None else kv_cache.to(device),
            layer=replace(layer, **{name: tensor.to(device) for name, tensor in layer.tensors.items()}),
            block_size=block_size if attn_type.reads_cache else None,
            common=common,
            batch=batch,
        )

    return make


@pytest.fixture
def forward(aiter: Aiter) -> Callable[..., torch.Tensor]:
    """Runs a step on a backend: the cache write, the builder, the implementation. Rows that nobody owns stay NaN."""

    def run(
        backend: type[AttentionBackend], step: Step, *, builder: dict[str, Any] | None = None, **options: Any
    ) -> torch.Tensor:
        impl = backend.impl(step.layer, **{"aiter": aiter, **step.constructor, **options})
        if step.kv_cache is not None:
            impl.do_kv_cache_update(step.key, step.value, step.kv_cache, step.common.slot_mapping)
        metadata = backend.builder(step.layer.attn_type, **(builder or {})).build(step.common)
        output = torch.full_like(step.query, torch.nan)
        assert impl.forward(step.query, step.key, step.value, step.kv_cache, metadata, output=output) is output
        return output

    return run


@pytest.fixture
def refuses(aiter: Aiter, calls: list[Call]) -> Callable[..., None]:
    """Runs `forward` on a step and expects an error before anything was called of AITER or written."""

    def check(
        backend: type[AttentionBackend],
        step: Step,
        error: type[Exception],
        match: str,
        replaced: dict[str, Any] | None = None,
        **options: Any,
    ) -> None:
        """`replaced`: arguments of `forward` that are not the step's."""
        impl = backend.impl(step.layer, **{"aiter": aiter, **step.constructor, **options})
        arguments = {
            "query": step.query,
            "key": step.key,
            "value": step.value,
            "kv_cache": step.kv_cache,
            "attn_metadata": backend.builder(step.layer.attn_type).build(step.common),
            "output": torch.full_like(step.query, torch.nan),
            **(replaced or {}),
        }
        before = copy.deepcopy(arguments["output"])
        with pytest.raises(error, match=match):
            impl.forward(**arguments)
        if before is not None:
            torch.testing.assert_close(arguments["output"], before, rtol=0, atol=0, equal_nan=True)
        assert not calls

    return check


@pytest.fixture
def assert_agrees(forward: Callable[..., torch.Tensor]) -> Callable[..., None]:
    """Compares a step on a backend with the reference in float64."""

    def check(backend: type[AttentionBackend], step: Step, *, parts: int = 1, **options: Any) -> None:
        """`parts`: softmaxes that are merged, each of which rounds the output once more."""
        output = forward(backend, step, **options)
        expected = torch.full_like(output, torch.nan)
        exact = {"out": expected, "precision": torch.float64}
        if step.kv_cache is None:
            attn_reference.varlen_attention(step.query, step.key, step.value, step.layer, step.batch, **exact)
        else:
            attn_reference.paged_attention(step.query, step.kv_cache, step.layer, step.batch, **exact)
        largest = 5.0  # of the standard normal numbers in the cache
        # half an eps for the weights and for each part's output
        atol = ((1 + parts) / 2 * torch.finfo(output.dtype).eps + 2**-18) * largest
        torch.testing.assert_close(output, expected, rtol=0, atol=atol, equal_nan=True)

    return check
