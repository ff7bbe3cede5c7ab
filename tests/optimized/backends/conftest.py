"""Steps of an engine as a backend sees them, and their comparison with the reference."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from attn_contract import AttentionType, Batch, Layer, Layout
from attn_fuzz.interpreted.aiter import interpreted
from attn_fuzz.targets.backends.layers import common_metadata
from attn_fuzz.targets.triton import TRITON
from attn_optimized.aiter_adapter import Aiter, find_aiter, import_aiter
from attn_optimized.backends import BACKENDS, AttentionBackend, AttentionImpl, CommonAttentionMetadata

from tests.optimized.aiter_adapter.documented_aiter import Call, stand_in
from tests.support.agreement import assert_within_bound
from tests.support.calls import (
    PagedCall,
    VarlenCall,
    forget,
    is_new,
    padded_rows,
    paged_call,
    random_tokens,
    shuffled_blocks,
    varlen_call,
)

FORMS = {
    **{name: {"layout": Layout.BLOCKS_FIRST_NHD} for name in BACKENDS},
    "ROCM_ATTN": {"layout": Layout.X_PACKED},
    "TRITON_ATTN_DIFFKV": {"layout": Layout.CONTENT_PACKED, "head_size_v": 48},
}
"""The cache of a step, and the width of V."""
PLAIN = [name for name, backend in BACKENDS.items() if issubclass(backend.impl, AttentionImpl) and "SPARSE" not in name]
"""Backends of layers that attend to all keys. See test_selecting.py for the others."""
ROTATING = [name for name in PLAIN if name not in ("ROCM_AITER_FA", "TRITON_ATTN_DIFFKV")]


@dataclass(frozen=True, eq=False, kw_only=True)
class BackendStep:
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
    """The calls of AITER, in order."""
    return []


@pytest.fixture
def aiter(calls: list[Call]) -> Aiter:
    """AITER of 2026-08, on a CPU: see tests.optimized.aiter_adapter.documented_aiter."""
    return stand_in(calls)


@pytest.fixture(scope="session")
def installed_aiter() -> Aiter:
    """The AITER that is installed, as it is on an AMD GPU; where there is none, its unified_attention is interpreted."""
    found = import_aiter() if torch.cuda.is_available() else find_aiter()
    if found.missing is not None:
        pytest.skip(found.missing)
    return found if torch.cuda.is_available() else interpreted(found)


@pytest.fixture
def make_step(device: torch.device) -> Callable[..., BackendStep]:
    """Builds a step from lengths. What this step writes is not in the cache yet, which holds NaN there.

    For cross-attention `seq_lens` are the encoder's, and this step brings all of the encoder's tokens.
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
        layout: Layout = Layout.BLOCKS_FIRST_NHD,
        causal: bool | torch.Tensor = True,
        host_lens: bool = True,
        **rules: Any,
    ) -> BackendStep:
        sizes = {"num_heads": num_heads, "num_kv_heads": num_kv_heads, "head_size": head_size}
        tokens = random_tokens(query_lens, seq_lens, dtype=dtype, **sizes)
        blocks = shuffled_blocks(seq_lens, block_size)
        is_cross = attn_type is AttentionType.ENCODER_DECODER
        new = is_new(seq_lens if is_cross else query_lens, seq_lens)
        if attn_type.reads_cache:
            seen = causal if attn_type is AttentionType.DECODER else False
            options = {"layout": layout, "block_size": block_size, "gap": 0, "causal": seen, **rules}
            call = paged_call(tokens, attn_type=attn_type, device=device, **options)
            kv_cache = forget(call, blocks.slots[new]).kv_cache
        else:
            call, kv_cache = varlen_call(tokens, attn_type=attn_type, device=device, **rules), None
        key, value = padded_rows(tokens.key[new], tokens.value[new], device=device)
        value = value[..., : call.layer.v_head_size]
        common = common_metadata(call.batch, attn_type)
        common = replace(
            common,
            max_query_len=max(query_lens),
            seq_lens_cpu=common.seq_lens_cpu if host_lens else None,
            block_table_tensor=blocks.table.to(device),
            slot_mapping=blocks.slots[new].to(device),
        )
        return BackendStep(
            query=call.q,
            key=key,
            value=value,
            kv_cache=kv_cache,
            layer=call.layer,
            block_size=block_size if attn_type.reads_cache else None,
            common=common,
            batch=call.batch,
        )

    return make


@pytest.fixture
def forward(aiter: Aiter) -> Callable[..., torch.Tensor]:
    """Runs a step on a backend: the cache write, the builder, the implementation. Rows that nobody owns stay NaN."""

    def run(
        backend: type[AttentionBackend], step: BackendStep, *, builder: dict[str, Any] | None = None, **options: Any
    ) -> torch.Tensor:
        impl = backend.impl(step.layer, **{"aiter": aiter, **step.constructor, **options})
        if step.kv_cache is not None:
            impl.do_kv_cache_update(step.key, step.value, step.kv_cache, step.common.slot_mapping)
        metadata = backend.builder(step.layer.attn_type, **(builder or {})).build(step.common)
        output = step.query.new_full((*step.query.shape[:2], step.layer.v_head_size), torch.nan)
        assert impl.forward(step.query, step.key, step.value, step.kv_cache, metadata, output=output) is output
        return output

    return run


@pytest.fixture
def refuses(aiter: Aiter, calls: list[Call]) -> Callable[..., None]:
    """Runs `forward` on a step and expects an error before anything was called of AITER or written."""

    def check(
        backend: type[AttentionBackend],
        step: BackendStep,
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
            "output": step.query.new_full((*step.query.shape[:2], step.layer.v_head_size), torch.nan),
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
    """Runs a step on a backend and judges its rows, as the fuzzer judges those of the backend's target.

    The bound counts one rounding of the output. ROCM_AITER_FA also rounds the parts that it merges: these steps leave room for
    that.
    """

    def check(backend: type[AttentionBackend], step: BackendStep, **options: Any) -> None:
        output = forward(backend, step, **options)
        rounding = TRITON.rounding(output.device.type)
        if step.kv_cache is None:
            call = VarlenCall(step.query, step.key, step.value, step.layer, step.batch)
        else:
            call = PagedCall(step.query, step.kv_cache, step.layer, step.batch)
        assert_within_bound(call, output, rounding=rounding)

    return check
