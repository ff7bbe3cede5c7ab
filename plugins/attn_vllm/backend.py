"""The base of all backends. All questions of vLLM are answered from one declaration, the backend's Capabilities.

vLLM's selector does not ask about a soft cap, ALiBi, or the number of heads. The constructor of a layer refuses them where the
declaration does.
"""

import dataclasses
from types import ModuleType
from typing import Any, ClassVar, cast

import torch
import vllm.envs as envs
from attn_contract import (
    FLOAT8_DTYPES,
    FLOAT_DTYPES,
    AttentionConfig,
    AttentionType,
    Capabilities,
    ContractError,
    Layer,
    Only,
    UnsupportedError,
)
from attn_contract.capabilities import Multiples, unsupported
from vllm.config.cache import CacheDType
from vllm.model_executor.layers.quantization.utils.quant_utils import QuantKey, kFp8StaticTensorSym
from vllm.platforms import current_platform
from vllm.platforms.interface import DeviceCapability
from vllm.v1.attention.backend import AttentionBackend, AttentionImpl, AttentionLayer, MultipleOf
from vllm.v1.kv_cache_interface import AttentionSpec, KVCacheSpec, KVQuantMode

from attn_vllm.layer import CACHE_FORMATS, CacheFormat, cache_format, layer_of
from attn_vllm.metadata import ParityMetadata


class ParityBackend(AttentionBackend):
    """A backend of vLLM that serves what `capabilities` declares.

    Its caches are vLLM's own [NB, HK, BS, content], in any physical order that vLLM chooses: kernels address them by strides.
    """

    capabilities: ClassVar[Capabilities]
    forward_includes_kv_cache_update = False
    supports_kv_cache_update_bypass = True

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        cls.supported_dtypes = [dtype for dtype in FLOAT_DTYPES if dtype in cls.capabilities.dtypes]
        served = [name for name, stored in CACHE_FORMATS.items() if _is_served(stored, cls.capabilities)]
        cls.supported_kv_cache_dtypes = cast(list[CacheDType], served)

    @classmethod
    def get_supported_kernel_block_sizes(  # pyright: ignore[reportIncompatibleMethodOverride]  # static in vLLM
        cls, kv_cache_spec: KVCacheSpec | None = None
    ) -> list[int | MultipleOf]:
        sizes = cls.capabilities.block_sizes
        return list(sizes.values) if isinstance(sizes, Only) else [MultipleOf(_a_block_size(cls.capabilities))]

    @classmethod
    def customize_spec(cls, spec: AttentionSpec) -> AttentionSpec:
        """Make room for scales per token and head: one float32 after each row of K, and one after each row of V."""
        if spec.kv_quant_mode not in (KVQuantMode.INT8_PER_TOKEN_HEAD, KVQuantMode.FP8_PER_TOKEN_HEAD):
            return spec
        content = spec.head_size + spec.head_size_v + 2 * torch.float32.itemsize
        return dataclasses.replace(spec, state_content_bytes=content)

    @classmethod
    def supports_head_size(cls, head_size: int) -> bool:
        return head_size in cls.capabilities.head_sizes

    @classmethod
    def supports_attn_type(cls, attn_type: str) -> bool:
        return attn_type in set(AttentionType) and bool(cls.capabilities.attn_types[AttentionType(attn_type)])

    @classmethod
    def supports_per_head_quant_scales(cls) -> bool:
        return "head" in cls.capabilities.scales

    @classmethod
    def supports_sink(cls) -> bool:
        return bool(cls.capabilities.answer("sinks"))

    @classmethod
    def supports_sliding_window(cls) -> bool:
        return bool(cls.capabilities.answer("window"))

    @classmethod
    def supports_mm_prefix(cls) -> bool:
        return bool(cls.capabilities.answer("bidirectional_ranges"))

    @classmethod
    def supports_non_causal(cls) -> bool:
        return bool(cls.capabilities.answer("non_causal"))

    @classmethod
    def supports_batch_invariance(cls) -> bool:
        return bool(cls.capabilities.answer("batch_invariant"))

    @classmethod
    def supports_combination(
        cls,
        head_size: int,
        dtype: torch.dtype,
        kv_cache_dtype: CacheDType | None,
        block_size: int | None,
        use_mla: bool,
        has_sink: bool,
        use_sparse: bool,
        use_mm_prefix: bool,
        device_capability: DeviceCapability,
    ) -> str | None:
        """All reasons to refuse a layer, in words; None if it is served. vLLM's other questions only take yes or no."""
        if dtype not in FLOAT_DTYPES:
            return None  # vLLM has asked only about the dtype
        try:
            stored = cache_format(kv_cache_dtype or "auto")
            if stored.unquantized not in (None, dtype):
                reason = f"queries are {dtype}, and an unquantized cache is like them"
                return f"KV cache dtype {kv_cache_dtype} not supported: {reason}"
            config = AttentionConfig(
                num_heads=1,
                num_kv_heads=1,
                head_size=head_size,
                dtype=dtype,
                block_size=block_size or _a_block_size(cls.capabilities),
                layout=stored.layout,
                kv_cache_dtype=stored.quantized,
                scales=stored.scales,
                rules={"sinks": has_sink, "bidirectional_ranges": use_mm_prefix},
            )
        except (UnsupportedError, ContractError) as error:
            return str(error)
        return "; ".join(map(str, cls.capabilities.refusals(config))) or None


class ParityImpl(AttentionImpl[ParityMetadata]):
    """One layer of a model in vLLM.

    Args:
        extra_impl_args: further arguments of a model to its layer, such as `sinks`.

    The other arguments are those of vLLM's AttentionImpl.

    Raises:
        UnsupportedError: the backend does not serve such a layer; the message gives all the reasons.
        ContractError: the arguments contradict each other.
    """

    capabilities: ClassVar[Capabilities]
    kernels: ClassVar[ModuleType]
    """`attn_optimized` or `attn_reference`, which have the same functions."""

    def __init__(
        self,
        num_heads: int,
        head_size: int,
        scale: float,
        num_kv_heads: int | None = None,
        alibi_slopes: list[float] | None = None,
        sliding_window: int | None = None,
        kv_cache_dtype: str = "auto",
        logits_soft_cap: float | None = None,
        attn_type: str = AttentionType.DECODER,
        kv_sharing_target_layer_name: str | None = None,
        **extra_impl_args: Any,
    ) -> None:
        self.layer = layer_of(
            num_heads=num_heads,
            head_size=head_size,
            scale=scale,
            num_kv_heads=num_kv_heads,
            alibi_slopes=alibi_slopes,
            sliding_window=sliding_window,
            kv_cache_dtype=kv_cache_dtype,
            logits_soft_cap=logits_soft_cap,
            attn_type=attn_type,
            **extra_impl_args,
        )
        self.stored = cache_format(kv_cache_dtype) if self.layer.layout else CacheFormat()
        self.batch_invariant = envs.VLLM_BATCH_INVARIANT
        kv_sharing = kv_sharing_target_layer_name is not None
        refuse_unsupported(
            self.capabilities, self.layer, self.stored, batch_invariant=self.batch_invariant, kv_sharing=kv_sharing
        )
        # read by vLLM's layer, which quantizes queries beside a float8 cache where its own Triton backend says so
        self.supports_quant_query_input = self.stored.scales == "tensor" and _has_float8_dots()
        # vLLM reads these
        self.num_heads, self.num_kv_heads, self.head_size = num_heads, self.layer.num_kv_heads, head_size
        self.scale, self.kv_cache_dtype, self.attn_type = self.layer.scale, kv_cache_dtype, attn_type
        self.kv_sharing_target_layer_name = kv_sharing_target_layer_name

    def forward(
        self,
        layer: AttentionLayer,
        query: torch.Tensor,
        key: torch.Tensor | None,
        value: torch.Tensor | None,
        kv_cache: torch.Tensor,
        attn_metadata: ParityMetadata | None,
        output: torch.Tensor,
        output_scale: torch.Tensor | None = None,
        output_block_scale: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Attend to the cache, which already holds this step's tokens. In an encoder, attend to key and value.

        Args:
            layer: vLLM's layer, which has the scales of a float8 cache.
            query: [T, H, D], float8 where vLLM's layer quantizes queries.
            key, value: [T, HK, D]; layers with a cache do not look at them.
            kv_cache: [NB, HK, BS, content] of vLLM's element type, any strides.
            attn_metadata: None while vLLM measures memory; output is then filled with 0.
            output: [T, H, D]; only rows that a request owns are written.
            output_scale: [] or [1] float32 of a float8 output.
            output_block_scale: refused.

        Returns:
            output.

        Raises:
            UnsupportedError: there is an output_block_scale, or the kernels do not serve the call. Nothing was written.
            ContractError: the arguments contradict the contract. Nothing was written.
        """
        if output_block_scale is not None:
            reason = "a float8 output has one scale for all of it"
            raise UnsupportedError(self.capabilities.backend, "output_block_scale", reason)
        if attn_metadata is None:
            return output.zero_()
        batch, contract_layer = attn_metadata.batch, self._with_loaded(layer, output_scale, query)
        options = {"out": output, "batch_invariant": self.batch_invariant}
        if self.layer.layout is None:
            return self.kernels.varlen_attention(query, key, value, contract_layer, batch, **options)
        return self.kernels.paged_attention(query, self.stored.view(kv_cache), contract_layer, batch, **options)

    def do_kv_cache_update(
        self,
        layer: AttentionLayer,
        key: torch.Tensor,
        value: torch.Tensor,
        kv_cache: torch.Tensor,
        slot_mapping: torch.Tensor,
    ) -> None:
        """Write key and value [T_kv, HK, D] to the slots of slot_mapping [S]. Encoders have no cache and write nothing."""
        if self.layer.layout is not None:
            self.kernels.write_kv_cache(key, value, self.stored.view(kv_cache), self._with_loaded(layer), slot_mapping)

    def do_rope_and_kv_cache_update(
        self,
        layer: AttentionLayer,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        positions: torch.Tensor,
        cos_sin_cache: torch.Tensor,
        is_neox: bool,
        kv_cache: torch.Tensor,
        layer_slot_mapping: torch.Tensor,
    ) -> None:
        """Rotate query [T, H, D] in place, and write rotated key and value [T_kv, HK, D] to the cache.

        Key itself stays as it is, because `forward` reads the cache.

        Args:
            layer: vLLM's layer, which has the scales of a float8 cache.
            positions: [P] int64.
            cos_sin_cache: [max_position, rotary_dim].
            is_neox: True if a pair of dims is (i, i + rotary_dim / 2), and not (2 * i, 2 * i + 1).
            layer_slot_mapping: [S] int64.
        """
        self.kernels.rope_and_write_kv_cache(
            query,
            key,
            value,
            positions,
            cos_sin_cache,
            self.stored.view(kv_cache),
            self._with_loaded(layer),
            layer_slot_mapping,
            is_neox=is_neox,
        )

    def fused_rope_kvcache_supported(self) -> bool:  # pyright: ignore[reportIncompatibleMethodOverride]  # vLLM's is False
        return self.layer.layout is not None and bool(self.capabilities.answer("rope"))

    def fused_output_quant_supported(self, quant_key: QuantKey) -> bool:
        return quant_key == kFp8StaticTensorSym and quant_key.dtype in self.capabilities.output_dtypes

    def _with_loaded(
        self, layer: AttentionLayer, output_scale: torch.Tensor | None = None, query: torch.Tensor | None = None
    ) -> Layer:
        """The layer, completed by what vLLM's layer only has after its constructor: scales, and whether ranges are clamped."""
        changes: dict[str, Any] = {}
        if self.stored.scales == "tensor":  # the same attributes hold one scale per head if the checkpoint has them
            changes = {"kv_cache_dtype": self.stored.quantized, "k_scale": layer._k_scale, "v_scale": layer._v_scale}
        if query is not None and query.dtype in FLOAT8_DTYPES:
            changes["q_scale"] = layer._q_scale
        if output_scale is not None:
            changes["output_scale"] = output_scale
        if getattr(layer, "mm_prefix_clamp_sliding_window", False):
            changes["ranges_clamped"] = True
        return dataclasses.replace(self.layer, **changes) if changes else self.layer


def refuse_unsupported(
    capabilities: Capabilities, layer: Layer, stored: CacheFormat, *, batch_invariant: bool, kv_sharing: bool
) -> None:
    """Raise an UnsupportedError with all the reasons for which a backend does not serve a layer."""
    config = AttentionConfig.of(
        layer,
        torch.get_default_dtype(),  # while vLLM builds a model, this is the model's dtype
        block_size=_a_block_size(capabilities) if layer.layout else None,
        batch_invariant=batch_invariant,
        kv_sharing=kv_sharing,
    )
    config = dataclasses.replace(config, kv_cache_dtype=stored.quantized, scales=stored.scales)
    if refusals := capabilities.refusals(config):
        raise unsupported(capabilities.backend, refusals)


def _has_float8_dots() -> bool:
    """The answer of TritonAttentionImpl of vLLM 0.33 (v1/attention/backends/triton_attn.py:553-558)."""
    if not current_platform.is_rocm():
        return current_platform.is_cuda()
    from vllm.platforms.rocm import on_gfx11, on_gfx90a

    return not (on_gfx90a() or on_gfx11())


def _is_served(stored: CacheFormat, capabilities: Capabilities) -> bool:
    if stored.quantized is None:
        return stored.layout in capabilities.layouts
    return (
        stored.layout in capabilities.layouts
        and stored.quantized in capabilities.kv_cache_dtypes
        and stored.scales in capabilities.scales
    )


def _a_block_size(capabilities: Capabilities) -> int:
    """A block size that is supported. vLLM may not have chosen one yet, and then the block size must not be the refusal."""
    match capabilities.block_sizes:
        case Only(values=sizes):
            return sizes[0]
        case Multiples(of=base):
            return base
        case _:
            return 1
