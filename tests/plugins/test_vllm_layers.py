"""vLLM's own Attention modules over this project's backends: its dispatch, its cache updates, its cross-attention."""

import attn_reference
import numpy as np
import pytest
import torch
from attn_contract import AttentionType, Batch, Layer, Layout

pytest.importorskip("vllm", reason="needs vLLM: tox run -e vllm")

from attn_vllm import register
from vllm.model_executor.layers.attention.cross_attention import create_cross_attention_backend
from vllm.model_executor.layers.attention.encoder_only_attention import create_encoder_only_attention_backend
from vllm.v1.attention.backends.registry import AttentionBackendEnum
from vllm.v1.kv_cache_interface import CrossAttentionSpec, EncoderOnlyAttentionSpec, FullAttentionSpec

from tests.plugins.vllm_model import HEAD_SIZE, NUM_HEADS, NUM_KV_HEADS, Model, common_of, rows

BLOCK_SIZE = 4
SHAPES = {"block_size": BLOCK_SIZE, "num_kv_heads": NUM_KV_HEADS, "head_size": HEAD_SIZE, "dtype": torch.float32}


@pytest.fixture(params=["PARITY_REFERENCE", "PARITY_TRITON"])
def backend(request):
    register()
    return AttentionBackendEnum[request.param].get_class()


def attended(q, keys, values, seq_lens, common, *, attn_type=AttentionType.DECODER, causal=True, **rules) -> torch.Tensor:
    """Attention over every request's own keys and values [R, n, HK, D], one block for each request."""
    layer = Layer(
        num_heads=NUM_HEADS,
        num_kv_heads=NUM_KV_HEADS,
        head_size=HEAD_SIZE,
        scale=HEAD_SIZE**-0.5,
        attn_type=attn_type,
        layout=Layout.BLOCKS_FIRST_NHD,
        **rules,
    )
    batch = Batch(
        query_start_loc=common.query_start_loc,
        seq_lens=torch.tensor(seq_lens, dtype=torch.int32, device=q.device),
        max_query_len=common.max_query_len,
        max_seq_len=64,
        num_actual_tokens=len(q),
        causal=causal,
        block_table=torch.arange(len(seq_lens), dtype=torch.int32, device=q.device)[:, None],
    )
    return attn_reference.paged_attention(q, torch.stack([keys, values], dim=1), layer, batch)


def test_a_decoder_layer(backend):
    """vLLM's module writes the cache and attends, in a prefill and in a step of one and of three tokens."""
    generator = torch.Generator().manual_seed(0)
    model = Model(backend, FullAttentionSpec(**SHAPES), per_layer_sliding_window=4)
    block_table = torch.tensor([[5, 2, 9], [3, 11, 7]], dtype=torch.int32)
    keys, values = torch.full((2, 2, 12, NUM_KV_HEADS, HEAD_SIZE), torch.nan, device=model.device)
    seq_lens = [0, 0]
    for query_lens in ([5, 2], [1, 3]):
        before, seq_lens = seq_lens, [n + q for n, q in zip(seq_lens, query_lens, strict=True)]
        common = common_of(query_lens, seq_lens, block_table, model.device, block_size=BLOCK_SIZE)
        q = rows(generator, sum(query_lens), NUM_HEADS, model.device)
        k, v = (rows(generator, sum(query_lens), NUM_KV_HEADS, model.device) for _ in range(2))
        for r, (first, end) in enumerate(zip(before, seq_lens, strict=True)):
            mine = slice(common.query_start_loc_cpu[r], common.query_start_loc_cpu[r + 1])
            keys[r, first:end], values[r, first:end] = k[mine], v[mine]
        out = model.step(q, k, v, common)
        torch.testing.assert_close(out, attended(q, keys, values, seq_lens, common, window=(3, -1)), rtol=0, atol=2e-5)


def test_an_encoder_layer(backend):
    """vLLM's wrapper for encoders says causal=False; no cache is read or written."""
    generator = torch.Generator().manual_seed(0)
    wrapped = create_encoder_only_attention_backend(backend)
    model = Model(wrapped, EncoderOnlyAttentionSpec(**SHAPES), attn_type="encoder_only")
    common = common_of([5, 3], [5, 3], torch.zeros(2, 3, dtype=torch.int32), model.device, block_size=BLOCK_SIZE)
    q = rows(generator, 8, NUM_HEADS, model.device)
    k, v = (rows(generator, 8, NUM_KV_HEADS, model.device) for _ in range(2))
    out = model.step(q, k, v, common)
    keys, values = (torch.nn.utils.rnn.pad_sequence(x.split([5, 3]), batch_first=True) for x in (k, v))
    torch.testing.assert_close(out, attended(q, keys, values, [5, 3], common, causal=False), rtol=0, atol=2e-5)
    assert model.attention.kv_cache.isnan().all()


def test_a_cross_attention_layer(backend):
    """Steps of a prompt, of a token, of a request that joins, and of several tokens; the encoder's keys come once.

    A prompt of three tokens sees all of the encoder's: with a causal mask the first two would not (vLLM #38450, #39119).
    """
    generator = torch.Generator().manual_seed(0)
    model = Model(create_cross_attention_backend(backend), CrossAttentionSpec(**SHAPES), attn_type="encoder_decoder")
    block_table = torch.tensor([[5, 2], [3, 11]], dtype=torch.int32)
    encoder_lens = [7, 5]
    keys, values = torch.randn(2, 2, 7, NUM_KV_HEADS, HEAD_SIZE, generator=generator).to(model.device)
    for query_lens, seq_lens, written in (
        ([3], [3], [0]),
        ([1], [4], []),
        ([1, 2], [5, 2], [1]),
        ([3, 1], [8, 3], []),
    ):
        present = len(query_lens)
        common = common_of(
            query_lens,
            seq_lens,
            block_table[:present],
            model.device,
            block_size=BLOCK_SIZE,
            encoder_seq_lens=torch.tensor(encoder_lens[:present], dtype=torch.int32, device=model.device),
            encoder_seq_lens_cpu=np.array(encoder_lens[:present], dtype=np.int32),
        )
        q = rows(generator, sum(query_lens), NUM_HEADS, model.device)
        k, v = (torch.cat([x[r, : encoder_lens[r]] for r in written]) if written else None for x in (keys, values))
        out = model.step(q, k, v, common)
        expected = attended(
            q,
            keys[:present],
            values[:present],
            encoder_lens[:present],
            common,
            attn_type=AttentionType.ENCODER_DECODER,
            causal=False,
        )
        torch.testing.assert_close(out, expected, rtol=0, atol=2e-5)
