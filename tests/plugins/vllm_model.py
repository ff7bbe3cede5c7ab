"""An attention module of vLLM on a backend, with its cache and its metadata builder: what a worker of vLLM has of a layer."""

from collections.abc import Iterable
from types import SimpleNamespace

import torch
from vllm.config import DeviceConfig, VllmConfig, set_current_vllm_config
from vllm.forward_context import set_forward_context
from vllm.model_executor.layers.attention import Attention
from vllm.v1.attention.backend import AttentionBackend, CommonAttentionMetadata
from vllm.v1.attention.backends.registry import AttentionBackendEnum
from vllm.v1.kv_cache_interface import (
    FullAttentionSpec,
    KVCacheSpec,
    KVCacheTensor,
    compute_layout_strides,
    create_kv_cache_views,
    get_kv_quant_mode,
)
from vllm.v1.kv_cache_layout import KVCacheLayout

NUM_HEADS, NUM_KV_HEADS, HEAD_SIZE = 4, 2, 32
STEPS = ([5, 17], [1, 1], [3, 1])
"""Query lengths of two requests: a prefill, a decode, and a step of both."""
NAME = "model.layers.0.self_attn.attn"
STORED = {"auto": torch.float32, "fp8": torch.uint8, "int8_per_token_head": torch.int8, "fp8_per_token_head": torch.uint8}
"""Element types of vLLM's caches, by `--kv-cache-dtype`."""


class Model:
    """One attention module of vLLM, its cache and its metadata builder.

    Args:
        spec: of the layer's cache, before the backend's changes.
        kv_cache: the layer's view; None: 16 blocks of K, then V, in each row.
        kv_cache_dtype: as vLLM's `--kv-cache-dtype`.
        options: further arguments of `Attention`.
    """

    def __init__(
        self,
        backend: type[AttentionBackend],
        spec: KVCacheSpec,
        *,
        kv_cache: torch.Tensor | None = None,
        kv_cache_dtype: str = "auto",
        name: str = NAME,
        **options,
    ):
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.name, self.config = name, VllmConfig(device_config=DeviceConfig(device=self.device.type))
        caches = SimpleNamespace(
            sliding_window=None, cache_dtype=kv_cache_dtype, kv_cache_dtype_skip_layers=None, enable_prefix_caching=False
        )
        with set_current_vllm_config(self.config), self.device:
            self.attention = Attention(
                NUM_HEADS,
                HEAD_SIZE,
                HEAD_SIZE**-0.5,
                NUM_KV_HEADS,
                prefix=name,
                attn_backend=backend,
                cache_config=caches,
                **options,
            )
            if kv_cache is None:
                kv_cache = torch.full((16, NUM_KV_HEADS, spec.block_size, 2 * HEAD_SIZE), torch.nan)
        self.attention.kv_cache = kv_cache
        with set_current_vllm_config(self.config):
            self.builder = backend.get_builder_cls()(spec, [name], self._runner_config(), self.device)

    def step(self, q, k, v, common: CommonAttentionMetadata) -> torch.Tensor:
        metadata = {self.name: self.builder.build(0, common)}
        with set_forward_context(metadata, self.config, slot_mapping={self.name: common.slot_mapping}):
            return self.attention(q, k, v).view(q.shape)

    def _runner_config(self) -> SimpleNamespace:
        """The config that builders read, with a model: VllmConfig makes one only of a model's files."""
        model = SimpleNamespace(
            get_num_attention_heads=lambda parallel: NUM_HEADS,
            get_num_kv_heads=lambda parallel: NUM_KV_HEADS,
            get_head_size=lambda: HEAD_SIZE,
            hf_config=SimpleNamespace(model_type="any"),
            dtype=torch.float32,
            max_model_len=64,
            rswa_window=None,
            is_mm_prefix_lm=False,
        )
        return SimpleNamespace(**{**vars(self.config), "model_config": model})


def spec_and_cache(
    backend: type[AttentionBackend], *, layout: KVCacheLayout = KVCacheLayout.LBHNC, kv_cache_dtype: str = "auto"
) -> tuple[FullAttentionSpec, torch.Tensor]:
    """vLLM's spec for a layer of a backend, with the backend's changes, and a view of 16 blocks of 16 slots.

    All bytes are those of NaN in all float types.
    """
    spec = backend.customize_spec(
        FullAttentionSpec(
            block_size=16,
            num_kv_heads=NUM_KV_HEADS,
            head_size=HEAD_SIZE,
            dtype=STORED[kv_cache_dtype],
            kv_quant_mode=get_kv_quant_mode(kv_cache_dtype),
        )
    )
    raw = torch.full((16 * spec.page_size_bytes,), -1, dtype=torch.int8)
    layer_stride, block_stride, *_ = compute_layout_strides(spec, 16, 1, layout)
    placed = KVCacheTensor(size=len(raw), layers=[NAME], layer_stride=layer_stride, block_stride=block_stride)
    (view,) = create_kv_cache_views(raw, spec, 16, layout, placed)
    return spec, view


def common_of(query_lens, seq_lens, block_table, device, *, block_size: int, causal=True, **more) -> CommonAttentionMetadata:
    """A step of vLLM: the requests' last queries, whose keys and values go to the slots of the block table."""
    starts = torch.tensor([0, *query_lens]).cumsum(0).int()
    lengths = torch.tensor(seq_lens).int()
    slots = [
        block_table[r, at // block_size].long() * block_size + at % block_size
        for r, (query_len, n) in enumerate(zip(query_lens, seq_lens, strict=True))
        for at in [torch.arange(n - query_len, n)]
    ]
    return CommonAttentionMetadata(
        query_start_loc=starts.to(device),
        query_start_loc_cpu=starts,
        seq_lens=lengths.to(device),
        seq_lens_cpu_upper_bound=lengths,
        num_reqs=len(lengths),
        num_actual_tokens=int(starts[-1]),
        max_query_len=max(query_lens),
        max_seq_len=64,
        block_table_tensor=block_table.to(device),
        slot_mapping=torch.cat(slots).to(device),
        causal=causal,
        **more,
    )


def rows(generator: torch.Generator, n: int, num_heads: int, device) -> torch.Tensor:
    return torch.randn(n, num_heads, HEAD_SIZE, generator=generator).to(device)


def served(
    backend: str | type[AttentionBackend],
    *,
    layout: KVCacheLayout = KVCacheLayout.LBHNC,
    kv_cache_dtype: str = "auto",
    steps: Iterable[list[int]] = STEPS,
    **options,
) -> torch.Tensor:
    """The outputs of a model's layer on a backend of vLLM, of two requests whose steps have so many queries."""
    generator = torch.Generator().manual_seed(0)
    backend = AttentionBackendEnum[backend].get_class() if isinstance(backend, str) else backend
    spec, kv_cache = spec_and_cache(backend, layout=layout, kv_cache_dtype=kv_cache_dtype)
    model = Model(backend, spec, kv_cache=kv_cache, kv_cache_dtype=kv_cache_dtype, **options)
    if kv_cache_dtype == "fp8":
        model.attention._k_scale.fill_(0.02)
        model.attention._v_scale.fill_(0.03)
    block_table = torch.tensor([[5, 2, 9], [3, 11, 7]], dtype=torch.int32)
    seq_lens, outputs = [0, 0], []
    for query_lens in steps:
        seq_lens = [n + q for n, q in zip(seq_lens, query_lens, strict=True)]
        common = common_of(query_lens, seq_lens, block_table, model.device, block_size=16)
        q = rows(generator, sum(query_lens), NUM_HEADS, model.device)
        k, v = (rows(generator, sum(query_lens), NUM_KV_HEADS, model.device) for _ in range(2))
        outputs.append(model.step(q, k, v, common))
    return torch.cat(outputs)
