"""PARITY_TRITON_MLA under vLLM's own modules: what it answers, and a layer as vLLM's layer of latent attention drives it.

vLLM's own ops gather a context from the cache, and run on a GPU alone; here plain PyTorch stands in for them.
"""

from types import SimpleNamespace

import pytest
import torch
from attn_contract import UnsupportedError
from attn_reference.latent import absorbed, expanded, up_projected

pytest.importorskip("vllm", reason="needs vLLM: tox run -e vllm")

import attn_vllm
from attn_vllm.mla import ParityMlaDecodeMetadata, ParityTritonMlaBackend, ParityTritonMlaImpl, ParityTritonMlaPrefill
from vllm.config import AttentionConfig, DeviceConfig, VllmConfig, set_current_vllm_config
from vllm.model_executor.layers.attention.mla_attention import (
    MLACommonMetadata,
    MLACommonPrefillMetadata,
    QueryLenSupport,
)
from vllm.platforms.interface import DeviceCapability
from vllm.v1.attention.backend import AttentionType, MultipleOf
from vllm.v1.attention.backends.mla.prefill.base import MLADimensions
from vllm.v1.attention.backends.mla.prefill.registry import MLAPrefillBackendEnum
from vllm.v1.attention.backends.mla.prefill.selector import MLAPrefillSelectorConfig
from vllm.v1.attention.backends.registry import AttentionBackendEnum

from tests.plugins.test_vllm_plugin import SERVED as PLAIN

SERVED = PLAIN | {"head_size": 576, "use_mla": True}
HEADS, NOPE, ROPE, VALUE, LATENT = 4, 24, 8, 16, 32
SCALE = (NOPE + ROPE) ** -0.5
BLOCK_SIZE, NUM_BLOCKS = 16, 20


def test_the_plugin_registers_both_backends_of_latent_attention():
    attn_vllm.register()
    attn_vllm.register()
    asked = AttentionConfig(backend="parity_triton_mla", mla_prefill_backend="parity_triton")
    assert asked.backend.get_class() is ParityTritonMlaBackend
    assert asked.mla_prefill_backend.get_class() is ParityTritonMlaPrefill
    assert AttentionBackendEnum["PARITY_TRITON_MLA"].get_class().get_name() == "PARITY_TRITON_MLA"
    assert MLAPrefillBackendEnum["PARITY_TRITON"].get_class().get_name() == "PARITY_TRITON"


@pytest.mark.parametrize(
    "asked",
    [
        {},
        {"head_size": 288},
        {"dtype": torch.float16, "kv_cache_dtype": "fp8"},
        {"kv_cache_dtype": "fp8_e4m3", "block_size": 64},
        {"use_non_causal": True},
        {"use_batch_invariant": True},
        {"use_dcp": True},
    ],
    ids=str,
)
def test_served_configurations_have_no_reason(asked):
    assert ParityTritonMlaBackend.validate_configuration(**{**SERVED, **asked}) == []


@pytest.mark.parametrize(
    ("asked", "reason"),
    [
        ({"use_mla": False}, "MLA"),
        ({"use_sparse": True}, "sparse"),
        ({"has_sink": True}, "sink"),
        ({"dtype": torch.float32}, "dtype"),
        ({"kv_cache_dtype": "fp8_ds_mla"}, "kv_cache_dtype"),
        ({"head_size": 656}, "head_size"),
        ({"block_size": 8}, "block_size"),
        ({"attn_type": AttentionType.ENCODER}, "attention type"),
    ],
    ids=str,
)
def test_a_configuration_is_refused_with_its_reason(asked, reason):
    (got,) = ParityTritonMlaBackend.validate_configuration(**{**SERVED, **asked})
    assert reason in got


def test_kernel_block_sizes_and_query_lengths():
    assert [
        size.base for size in ParityTritonMlaBackend.get_supported_kernel_block_sizes() if isinstance(size, MultipleOf)
    ] == [16]
    assert ParityTritonMlaBackend.get_builder_cls().query_len_support is QueryLenSupport.VARLEN


@pytest.mark.parametrize(
    ("sizes", "served"), [((128, 64, 128), True), ((192, 64, 256), True), ((24, 8, 48), False), ((512, 64, 128), False)]
)
def test_prefills_hold_v_no_wider_than_k(sizes, served):
    nope, rope, value = sizes
    dimensions = MLADimensions(qk_nope_head_dim=nope, qk_rope_head_dim=rope, v_head_dim=value)
    reasons = ParityTritonMlaPrefill.validate_configuration(
        DeviceCapability(9, 4), MLAPrefillSelectorConfig(dtype=torch.bfloat16, mla_dimensions=dimensions)
    )
    assert (reasons == []) == served


def config_on(device: torch.device) -> VllmConfig:
    return VllmConfig(device_config=DeviceConfig(device=device.type))


class Projection:
    """A linear layer of vLLM: its weight, and an output beside which there is no bias."""

    def __init__(self, weight: torch.Tensor) -> None:
        self.weight = weight

    def __call__(self, rows: torch.Tensor) -> tuple[torch.Tensor, None]:
        return rows @ self.weight.T, None


@pytest.fixture
def make_impl(device):
    def make(**changed) -> ParityTritonMlaImpl:
        draw = torch.Generator().manual_seed(3)
        weight = (torch.randn(HEADS * (NOPE + VALUE), LATENT, generator=draw) * 0.2).half().to(device)
        arguments = {
            "num_heads": HEADS,
            "head_size": LATENT + ROPE,
            "scale": SCALE,
            "num_kv_heads": 1,
            "alibi_slopes": None,
            "sliding_window": None,
            "kv_cache_dtype": "auto",
            "logits_soft_cap": None,
            "attn_type": AttentionType.DECODER,
            "kv_sharing_target_layer_name": None,
            "q_lora_rank": None,
            "kv_lora_rank": LATENT,
            "qk_nope_head_dim": NOPE,
            "qk_rope_head_dim": ROPE,
            "qk_head_dim": NOPE + ROPE,
            "v_head_dim": VALUE,
            "kv_b_proj": Projection(weight),
        }
        before = torch.get_default_dtype()
        torch.set_default_dtype(torch.float16)  # as while vLLM builds a model
        try:
            with set_current_vllm_config(config_on(device)):
                impl = ParityTritonMlaImpl(**{**arguments, **changed})
        finally:
            torch.set_default_dtype(before)
        impl.weight = weight.view(HEADS, NOPE + VALUE, LATENT)
        return impl

    return make


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"alibi_slopes": [1.0] * HEADS}, "ALiBi not supported"),
        ({"sliding_window": 9}, "sliding window not supported"),
        ({"logits_soft_cap": 5.0}, "soft cap of the logits not supported"),
        ({"kv_sharing_target_layer_name": "layers.0"}, "not supported: vLLM's layer of latent attention refuses it"),
    ],
    ids=str,
)
def test_layers_that_are_refused(changed, reason, make_impl):
    with pytest.raises(UnsupportedError, match=reason):
        make_impl(**changed)


def expected_of(impl, q, tokens, query_lens) -> torch.Tensor:
    """Each request by itself, expanded, in float64."""
    w_uk = impl.weight[:, :NOPE].permute(2, 0, 1).double()
    w_uv = impl.weight[:, NOPE:].permute(2, 0, 1).double()
    outs = []
    for rows, keys in zip(q.double().split(query_lens), tokens, strict=True):
        form = expanded(rows[..., :NOPE], rows[..., NOPE:], keys[:, :LATENT].double(), keys[:, LATENT:].double(), w_uk, w_uv)
        logits = torch.einsum("tnd,knd->ntk", form.query, form.key) * SCALE
        positions = torch.arange(len(keys) - len(rows), len(keys), device=q.device)
        hidden = torch.arange(len(keys), device=q.device)[None] > positions[:, None]
        weights = logits.masked_fill(hidden, -torch.inf).softmax(-1)
        outs.append(torch.einsum("ntk,knv->tnv", weights, form.value))
    return torch.cat(outs)


def gather(src_cache, dst, block_table, cu_seq_lens, token_to_seq, num_tokens, kv_cache_dtype, scale, seq_starts) -> None:
    """vLLM's op of this name on an unquantized cache."""
    starts = cu_seq_lens.tolist()
    for request in range(len(starts) - 1):
        for i in range(starts[request + 1] - starts[request]):
            position = int(seq_starts[request]) + i
            dst[starts[request] + i] = src_cache[block_table[request, position // BLOCK_SIZE], position % BLOCK_SIZE]


def merge(output, prefix_output, prefix_lse, suffix_output, suffix_lse, output_lse=None, **_) -> None:
    """vLLM's op of this name, in float64."""
    lse = torch.logaddexp(prefix_lse.double(), suffix_lse.double())
    parts = ((prefix_output, prefix_lse), (suffix_output, suffix_lse))
    merged = sum((part_lse.double() - lse).exp().T[..., None] * part.double() for part, part_lse in parts)
    output.copy_(merged)
    if output_lse is not None:
        output_lse.copy_(lse)


@pytest.mark.parametrize("kv_cache_dtype", ["auto", "fp8"])
def test_decodes_of_different_query_lengths(kv_cache_dtype, make_impl, device):
    """A write, and decodes of which each row has its own keys; the rows of a padded graph stay 0."""
    impl = make_impl(kv_cache_dtype=kv_cache_dtype)
    query_lens, seq_lens = [1, 3, 2], [40, 17, 2]
    stored = torch.float16 if kv_cache_dtype == "auto" else impl.stored.quantized
    cache = torch.zeros(NUM_BLOCKS, BLOCK_SIZE, LATENT + ROPE, dtype=stored, device=device)
    table = torch.arange(1, 13, dtype=torch.int32, device=device).view(4, 3)
    scale = torch.tensor([1.0] if kv_cache_dtype == "auto" else [0.25], device=device)
    tokens = [torch.randn(n, LATENT + ROPE).half().to(device) for n in seq_lens]
    slots = torch.cat([table[r, torch.arange(n) // BLOCK_SIZE].long() * BLOCK_SIZE + torch.arange(n, device=device) % BLOCK_SIZE
                       for r, n in enumerate(seq_lens)])  # fmt: skip
    rows = torch.cat(tokens)
    raw = cache if kv_cache_dtype == "auto" else cache.view(torch.uint8)
    impl.do_kv_cache_update(rows[:, :LATENT], rows[:, None, LATENT:], raw, slots, kv_cache_dtype, scale)
    if kv_cache_dtype == "fp8":
        tokens = [(keys.float() / scale).to(stored).float() * scale for keys in tokens]

    starts = torch.tensor([0, 1, 4, 6, 6], dtype=torch.int32, device=device)
    metadata = MLACommonMetadata(
        num_reqs=4,
        max_query_len=3,
        max_seq_len=48,
        num_actual_tokens=7,
        query_start_loc=starts,
        slot_mapping=slots,
        num_decodes=4,
        num_decode_tokens=7,
        num_prefills=0,
        decode=ParityMlaDecodeMetadata(
            block_table=table,
            seq_lens=torch.tensor([*seq_lens, 0], dtype=torch.int32, device=device),
            dcp_tot_seq_lens=None,
            query_start_loc=starts,
            max_query_len=3,
            max_seq_len=48,
        ),
    )
    q = torch.randn(7, HEADS, NOPE + ROPE).half().to(device)
    w_uk, w_uv = (part.permute(2, 0, 1) for part in (impl.weight[:, :NOPE], impl.weight[:, NOPE:]))
    nothing = rows[:1, :LATENT], rows[:1, LATENT:]
    query = absorbed(q[..., :NOPE], q[..., NOPE:], *nothing, w_uk).query
    loaded = SimpleNamespace(_k_scale=scale)
    out, lse = impl.forward_mqa((query[..., :LATENT], query[..., LATENT:]), cache, metadata, loaded)
    assert lse is None
    assert not out[6:].any()
    expected = expected_of(impl, q[:6], tokens, query_lens)
    torch.testing.assert_close(up_projected(out[:6], w_uv).double(), expected, rtol=0, atol=8e-3)

    impl.dcp_world_size = 2
    with pytest.raises(UnsupportedError, match="under DCP"):
        impl.forward_mqa(query, cache, metadata, loaded)
    metadata.causal = False
    _, lse = impl.forward_mqa(query, cache, metadata, loaded)
    assert lse.shape == (7, HEADS)
    assert lse.dtype == torch.float32


def test_prefills_and_a_context_in_chunks(make_impl, device, monkeypatch):
    """vLLM's forward_mha on our prefill backend: two chunks of a context, and a request that has none."""
    module = "vllm.model_executor.layers.attention.mla_attention"
    monkeypatch.setattr(f"{module}.ops.gather_and_maybe_dequant_cache", gather, raising=False)
    monkeypatch.setattr(f"{module}.merge_attn_states", merge)
    monkeypatch.setattr(f"{module}.current_platform.is_cpu", lambda: False, raising=False)
    impl = make_impl()
    query_lens, contexts = [5, 3], [20, 0]
    tokens = [torch.randn(c + n, LATENT + ROPE).half().to(device) for c, n in zip(contexts, query_lens, strict=True)]
    cache = torch.zeros(NUM_BLOCKS, BLOCK_SIZE, LATENT + ROPE, dtype=torch.float16, device=device)
    cache[3], cache[7, :4] = tokens[0][:16], tokens[0][16:20]
    table = torch.tensor([[3, 7, 1], [0, 0, 0]], dtype=torch.int32, device=device)
    starts = torch.tensor([0, 5, 8], dtype=torch.int32, device=device)

    def chunk(index: int, begin: int, end: int) -> MLACommonPrefillMetadata.ContextChunk:
        n = end - begin
        return MLACommonPrefillMetadata.ContextChunk(
            index=index,
            request_slice=slice(0, 1),
            token_slice=slice(0, 5),
            continuation_token_end=5,
            is_continuation=index > 0,
            num_context_tokens=n,
            query_start_loc=starts[:2],
            max_query_len=5,
            cu_seq_lens=torch.tensor([0, n], dtype=torch.int32, device=device),
            starts=torch.tensor([begin], dtype=torch.int32, device=device),
            max_seq_len=n,
            seq_lens=torch.tensor([n], dtype=torch.int32, device=device),
            token_to_seq=torch.zeros(n, dtype=torch.int32, device=device),
            all_rows_active=True,
        )

    workspace = torch.empty(16, LATENT + ROPE, dtype=torch.float16, device=device)
    context = MLACommonPrefillMetadata.ChunkedContextMetadata(
        context_lens=torch.tensor(contexts),
        workspace=workspace,
        chunks=[chunk(0, 0, 16), chunk(1, 16, 20)],
        context_lens_list=contexts,
        empty_token_slices=[slice(5, 8)],
    )
    prefill = ParityTritonMlaPrefill(HEADS, SCALE, LATENT, NOPE, ROPE, VALUE, config_on(device))
    of_prefills = MLACommonPrefillMetadata(
        block_table=table,
        query_start_loc=starts,
        max_query_len=5,
        chunked_context=context,
        q_data_type=torch.float16,
        output_dtype=torch.float16,
        prefill_backend=prefill,
    )
    prefill.prepare_metadata(of_prefills)
    metadata = MLACommonMetadata(
        num_reqs=2,
        max_query_len=5,
        max_seq_len=25,
        num_actual_tokens=8,
        query_start_loc=starts,
        slot_mapping=torch.zeros(8, dtype=torch.int64, device=device),
        num_decodes=0,
        num_decode_tokens=0,
        num_prefills=2,
        prefill=of_prefills,
    )
    q = torch.randn(8, HEADS, NOPE + ROPE).half().to(device)
    new = torch.cat([tokens[0][20:], tokens[1]])
    out = torch.empty(8, HEADS * VALUE, dtype=torch.float16, device=device)
    scale = torch.ones(1, device=device)
    impl.forward_mha(q, new[:, :LATENT], new[:, None, LATENT:], cache, metadata, scale, out)
    expected = expected_of(impl, q, tokens, query_lens)
    torch.testing.assert_close(out.view(8, HEADS, VALUE).double(), expected, rtol=0, atol=8e-3)

    of_prefills.chunked_context = None
    own = [tokens[0][20:], tokens[1]]
    impl.forward_mha(q, new[:, :LATENT], new[:, None, LATENT:], cache, metadata, scale, out)
    torch.testing.assert_close(out.view(8, HEADS, VALUE).double(), expected_of(impl, q, own, query_lens), rtol=0, atol=8e-3)
