"""The torch ops `attn_parity::*` on GPUs are these kernels; importing them needs none."""

import attn_optimized
import pytest
import torch


@pytest.mark.parametrize(
    "name",
    [
        "paged_attention",
        "varlen_attention",
        "write_kv_cache",
        "rope_and_write_kv_cache",
        "merge_attn_states",
        "merge_attn_parts",
    ],
)
def test_registered_for_gpus(name):
    assert torch._C._dispatch_has_kernel_for_dispatch_key(f"attn_parity::{name}", "CUDA")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="an op dispatches to these kernels on a GPU only")
def test_dispatches_to_the_kernels(paged_call):
    call = paged_call([3, 1], [20, 9])
    out = torch.empty_like(call.q)
    layer, batch = call.layer, call.batch
    torch.ops.attn_parity.paged_attention(
        call.q, call.kv_cache, str(layer.layout), layer.num_kv_heads, layer.scale, str(layer.attn_type), batch.query_start_loc,
        batch.seq_lens, batch.max_query_len, batch.max_seq_len, batch.num_actual_tokens,
        batch.block_table, True, None, out, None,
    )  # fmt: skip
    assert torch.equal(out[:4], attn_optimized.paged_attention(*call)[:4])
