"""Recordings of vLLM's latent attention to selected tokens on ROCm: its code runs, and mistakes are found."""

import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch
from attn_fuzz import foreign

pytest.importorskip("vllm", reason="needs vLLM: tox run -e vllm")

from attn_vllm_recording import sparse_mla
from vllm._aiter_ops import rocm_aiter_ops
from vllm.config import DeviceConfig, VllmConfig, set_current_vllm_config
from vllm.model_executor.layers.attention import MLAAttention

from tests.plugins import vllm_kernels

HEADS, NOPE, LATENT, ROPE, TOP_K, SIZE = 4, 16, 32, 8, 128, 16
TABLE = torch.tensor([[5, 2, 7, 11, 4, 9, 13, 8, 6, 12], [3, 10, 0, 0, 0, 0, 0, 0, 0, 0]], dtype=torch.int32)
COUNTS, LENGTHS = [3, 20], [150, 20]
ROWS = sum(COUNTS)


@pytest.fixture
def backend(monkeypatch):
    vllm_kernels.interpret(monkeypatch)
    rocm = sys.modules.get("vllm.platforms.rocm") or ModuleType("vllm.platforms.rocm")
    monkeypatch.setitem(sys.modules, rocm.__name__, rocm)
    vars(rocm).update(on_gfx942=lambda: True, on_mi3xx=lambda: True)
    from vllm.v1.attention.backends.mla import rocm_aiter_mla_sparse

    workspace = SimpleNamespace(get_simultaneous=lambda *asked: [torch.empty(shape, dtype=dtype) for shape, dtype in asked])
    monkeypatch.setattr(rocm_aiter_mla_sparse, "current_workspace_manager", lambda: workspace)
    monkeypatch.setattr(
        "vllm.model_executor.layers.attention.sparse_mla_attention.get_tensor_model_parallel_world_size", lambda: 1
    )
    return rocm_aiter_mla_sparse


@pytest.fixture
def recorded(backend, tmp_path, monkeypatch):
    """The recording of this process, which judges every call."""
    return vllm_kernels.recorded(monkeypatch, tmp_path)


@pytest.fixture
def make_layer(backend, recorded):
    """The parts of vLLM's layer of latent attention that a step needs, around vLLM's implementation."""

    def make(*, sinks=True, dtype=torch.float16, kv_cache_dtype="auto"):
        generator = torch.Generator().manual_seed(0)
        config = VllmConfig(device_config=DeviceConfig(device="cpu"))
        object.__setattr__(config, "model_config", SimpleNamespace(dtype=dtype))
        with set_current_vllm_config(config):
            impl = backend.ROCMAiterMLASparseImpl(
                num_heads=HEADS,
                head_size=LATENT + ROPE,
                scale=0.2,
                num_kv_heads=1,
                alibi_slopes=None,
                sliding_window=None,
                kv_cache_dtype=kv_cache_dtype,
                logits_soft_cap=None,
                attn_type="decoder",
                kv_sharing_target_layer_name=None,
                topk_indices_buffer=torch.full((ROWS + 2, TOP_K), -1, dtype=torch.int32),
                sinks=torch.randn(HEADS, generator=generator) if sinks else None,
                q_lora_rank=None,
                kv_lora_rank=LATENT,
                qk_nope_head_dim=NOPE,
                qk_rope_head_dim=ROPE,
                qk_head_dim=NOPE + ROPE,
                v_head_dim=NOPE,
                kv_b_proj=None,
                index_group_builder=SimpleNamespace(register_layer=lambda *given, **named: (None, 0)),
            )
        impl.dcp_world_size = impl.pcp_world_size = 1
        return SimpleNamespace(
            impl=impl,
            layer_name="model.layers.0.self_attn.attn",
            kv_cache_dtype=kv_cache_dtype,
            num_heads=HEADS,
            kv_lora_rank=LATENT,
            qk_nope_head_dim=NOPE,
            qk_rope_head_dim=ROPE,
            v_head_dim=NOPE,
            use_pcp=False,
            prefill_backend=None,
            q_pad_num_heads=None,
            is_aiter_triton_fp4_bmm_enabled=False,
            is_aiter_triton_fp8_bmm_enabled=False,
            is_amx_bmm_enabled=False,
            W_UK_T=torch.randn(HEADS, NOPE, LATENT, generator=generator).to(dtype) / 4,
            _q_scale=torch.tensor(0.5),
            _k_scale=torch.tensor(0.25),
            _use_sparse_mha=lambda metadata: False,
            _v_up_proj=lambda latent, out: out.copy_(latent[..., :NOPE].flatten(1)),
            _decode_concat_quant_fp8_op=lambda nope, pe, scale: (torch.cat((nope, pe), -1) / scale).to(torch.float8_e4m3fn),
        )

    return make


def select(layer, seed: int) -> None:
    """The selection of an index layer: any k of the tokens that a row sees, or all."""
    generator = torch.Generator().manual_seed(seed)
    rows = [end - count + 1 + row for end, count in zip(LENGTHS, COUNTS, strict=True) for row in range(count)]
    buffer = layer.impl.topk_indices_buffer.fill_(-1)
    for row, seen in enumerate(rows):
        chosen = torch.randperm(seen, generator=generator)[:TOP_K].int()
        buffer[row, : len(chosen)] = chosen


def metadata_of(backend, dtype):
    starts, lengths = torch.tensor([0, *COUNTS]).cumsum(0).int(), torch.tensor(LENGTHS, dtype=torch.int32)
    chosen = backend.generate_sparse_seqlen_triton(lengths, starts, TOP_K, ROWS, max(COUNTS))
    return backend.ROCMAiterMLASparseMetadata(
        num_reqs=2,
        max_query_len=max(COUNTS),
        max_seq_len=max(LENGTHS),
        num_actual_tokens=ROWS,
        query_start_loc=starts,
        slot_mapping=torch.zeros(ROWS, dtype=torch.int64),
        block_table=TABLE,
        req_id_per_token=torch.repeat_interleave(torch.arange(2), torch.tensor(COUNTS)).int(),
        seq_lens=lengths,
        block_size=SIZE,
        topk_tokens=TOP_K,
        num_prefills=2,
        prefill_max_seq_len=max(LENGTHS),
        qo_indptr=torch.arange(ROWS + 1, dtype=torch.int32),
        paged_kv_last_page_len=torch.ones(ROWS, dtype=torch.int32),
        paged_kv_indices=torch.zeros(ROWS * TOP_K, dtype=torch.int32),
        paged_kv_indptr=torch.nn.functional.pad(chosen.cumsum(0), (1, 0)).int(),
        attn_out_dtype=dtype,
    )


def run(backend, layer, *, steps=1, metadata=None):
    """Steps over a cache between whose blocks those of another layer lie. Slots that nobody wrote hold NaN."""
    generator, dtype = torch.Generator().manual_seed(1), layer.W_UK_T.dtype
    of_both = torch.full((16, 2, SIZE, LATENT + ROPE), torch.nan)
    for row, length in zip(TABLE.tolist(), LENGTHS, strict=True):
        for at in range(length):
            of_both[row[at // SIZE], 0, at % SIZE] = torch.randn(LATENT + ROPE, generator=generator)
    if layer.kv_cache_dtype == "fp8":
        cache = (of_both / layer._k_scale).to(torch.float8_e4m3fn).view(torch.uint8)[:, 0]
    else:
        cache = of_both.to(dtype)[:, 0]
    for step in range(steps):
        select(layer, step)
        q = torch.randn(ROWS, HEADS, NOPE + ROPE, generator=generator).to(dtype)
        new = torch.zeros(ROWS, LATENT, dtype=dtype), torch.zeros(ROWS, 1, ROPE, dtype=dtype)
        output = torch.empty(ROWS, HEADS * NOPE, dtype=dtype)
        given = metadata or metadata_of(backend, dtype)
        with foreign.as_on_a_gpu():
            MLAAttention.forward_impl(layer, q, *new, cache, given, output=output)
        assert output.isfinite().all()


def decode(q, kv, output, scale, qo_indptr, most, indptr, indices, last_page, *, q_scale, kv_scale):
    """AITER's kernel, in its place."""
    factors = (float(q_scale), float(kv_scale)) if q.element_size() == 1 else (1.0, 1.0)
    for row in range(len(q)):
        keys = kv[indices[int(indptr[row]) : int(indptr[row + 1])].long(), 0].float() * factors[1]
        weights = (q[row].float() * factors[0] @ keys.T * scale).softmax(-1)
        output[row] = weights @ keys[:, :LATENT]


def test_vllms_own_kernel_is_judged_right(backend, make_layer, recorded):
    run(backend, make_layer(), steps=2)
    assert (recorded.calls, recorded.judged, recorded.wrong, recorded.not_judged) == (2, 2, 0, {})
    assert 0 < recorded.ratio < 1


@pytest.mark.parametrize("kv_cache_dtype", ["auto", "fp8"])
def test_rows_for_aiters_kernel_are_judged_right(kv_cache_dtype, backend, make_layer, recorded, monkeypatch):
    monkeypatch.setattr(rocm_aiter_ops, "mla_decode_fwd", decode)
    monkeypatch.setattr(backend, "_is_long_bf16_prefill", lambda *given: False)
    layer = make_layer(sinks=False, dtype=torch.bfloat16, kv_cache_dtype=kv_cache_dtype)
    monkeypatch.setattr(backend.ops, "concat_mla_q", lambda nope, pe, q: torch.cat((nope, pe), -1, out=q), raising=False)
    run(backend, layer)
    assert (recorded.judged, recorded.wrong, recorded.not_judged) == (1, 0, {})


def test_rows_of_a_call_are_bounded(backend, make_layer, recorded, monkeypatch):
    monkeypatch.setattr(sparse_mla, "MAX_ROWS", 4)
    judged = []
    monkeypatch.setattr(recorded, "judge", lambda call, *given, **named: judged.append(len(call.q)))
    run(backend, make_layer(), steps=2)
    assert judged == [4, 4]


def to_neighbours(convert):
    def converted(req_id, table, tokens, *others, **named):
        convert(req_id, table, torch.where(tokens > 0, tokens - 1, tokens), *others, **named)

    return converted


def without_a_key(count):
    return lambda *given: (count(*given) - 1).clamp(min=1)


def without_sinks(kernel):
    return lambda **given: kernel(**{**given, "attn_sink": None})


def of_another_scale(kernel):
    return lambda **given: kernel(**{**given, "scale": given["head_dim"] ** -0.5})


@pytest.mark.parametrize(
    ("name", "mistake", "said"),
    [
        ("triton_convert_req_index_to_global_index", to_neighbours, "attends to "),
        ("generate_sparse_seqlen_triton", without_a_key, "127 slots; it sees 148 keys, of which 128 may be selected"),
        ("rocm_sparse_attn_prefill", without_sinks, "out of request"),
        ("rocm_sparse_attn_prefill", of_another_scale, "out of request"),
    ],
)
def test_a_mistake_is_found(name, mistake, said, backend, make_layer, recorded, monkeypatch):
    monkeypatch.setattr(backend, name, mistake(getattr(backend, name)))
    run(backend, make_layer())
    [found] = recorded.found
    assert recorded.wrong == 1
    assert said in found.wrong


def test_a_layer_that_follows_an_earlier_selection_is_found(backend, make_layer, recorded):
    """A layer without an indexer, which takes the slots of a call before its indexer wrote anew."""
    run(backend, make_layer(), steps=2, metadata=metadata_of(backend, torch.float16))
    [found] = recorded.found
    assert found.index == 1
    assert "where no selected key of its request lies" in found.wrong


def test_vllm_takes_a_hole_for_slot_0(backend, make_layer, recorded, monkeypatch):
    """vLLM 0.33's own: -1 before the last selected key, as candidates and ranks leave it."""

    def with_a_hole(layer, seed):
        chosen(layer, seed)
        layer.impl.topk_indices_buffer[0, 3] = -1

    chosen = select
    monkeypatch.setitem(globals(), "select", with_a_hole)
    monkeypatch.setattr(sparse_mla, "MAX_ROWS", ROWS)
    run(backend, make_layer())
    assert "row 0 attends to slot 0, where no selected key of its request lies" in recorded.found[0].wrong


def test_other_implementations_are_counted(backend, make_layer, recorded):
    layer = make_layer()
    layer.impl.pcp_world_size = 2
    run(backend, layer)
    assert recorded.not_judged == {"context parallelism: a process sees a part of the keys": 1}
