"""The base class of every backend: a declaration, a builder of metadata and a layer's implementation, by vLLM's names.

A backend writes the cache in `do_kv_cache_update` or `do_rope_and_kv_cache_update`, before `forward` reads it.
"""

import dataclasses
from abc import ABC, abstractmethod
from typing import Any, ClassVar, Generic, TypeVar

import torch
from attn_contract import (
    FLOAT8_DTYPES,
    AttentionConfig,
    AttentionType,
    Batch,
    Capabilities,
    ContractError,
    Layer,
    Layout,
    UnsupportedError,
)
from attn_contract.arguments import check_tensor, check_type, check_vector
from attn_contract.capabilities import unsupported
from attn_contract.rules import active_rules
from attn_contract.validation import check_layer_logits, check_write_kv_cache

import attn_optimized
from attn_optimized.aiter_adapter import Aiter, find_aiter
from attn_optimized.backends.metadata import CommonAttentionMetadata

PLANES_FIRST = tuple(layout for layout in Layout if layout.dims[0] == "kv")
"""Layouts with a plane of K and a plane of V; in other layouts K and V of a block are neighbours."""


Metadata = TypeVar("Metadata")


class AttentionMetadataBuilder(ABC, Generic[Metadata]):
    """Makes a backend's metadata from the common one, once in each step for all layers of one attention type.

    Raises:
        ContractError: `attn_type` is none.
    """

    metadata: ClassVar[type[Any]]
    """The class that `build` returns."""

    def __init__(self, attn_type: AttentionType) -> None:
        check_type("attn_type", attn_type, AttentionType, f"an AttentionType: {', '.join(AttentionType)}")
        self.attn_type = attn_type

    def build(self, common_attn_metadata: CommonAttentionMetadata) -> Metadata:
        """The step as the layers see it.

        Raises:
            ContractError: it is no CommonAttentionMetadata, or what its `batch` refuses.
        """
        check_type("common_attn_metadata", common_attn_metadata, CommonAttentionMetadata, "a CommonAttentionMetadata")
        return self._build(common_attn_metadata)

    @abstractmethod
    def _build(self, common_attn_metadata: CommonAttentionMetadata) -> Metadata: ...


class BatchBuilder(AttentionMetadataBuilder[Batch]):
    """A builder for backends whose kernels take the whole step as it is: their metadata is the contract's Batch."""

    metadata = Batch

    def _build(self, common_attn_metadata: CommonAttentionMetadata) -> Batch:
        return common_attn_metadata.batch(self.attn_type)


class AttentionImplBase(ABC, Generic[Metadata]):
    """One layer of a backend: the check that it is served, and the checks of its calls.

    Args:
        layer: the parameters of the layer; its `layout` is that of the tensors passed as kv_cache.
        dtype: the dtype of query, key and value. With a q_scale it is the dtype of key, value and an output without a scale.
        block_size: slots of a block; None for types without a cache.
        allocation_layout: the layout by which other layers read the same raw allocation, None if none do or all use
            `layer.layout`. Where they keep K and V in planes, all methods reinterpret a blocks-first kv_cache as planes, so
            that a block id covers the same bytes for everyone (vLLM #43945).
        kv_sharing_target_layer_name: the layer whose cache this one reads; it then writes nothing itself.
        batch_invariant: True if outputs must not depend on the rest of the batch; see attn_optimized.paged_attention.
        validate: check the values in tensors too, in every call, which waits for the device.
        aiter: AMD's AITER; the installed one if None.

    Raises:
        UnsupportedError: the backend does not serve such a layer; it names the property, the reason and who does.
        ContractError: an argument contradicts the contract, a sink or a slope is a number that it forbids, or no
            reinterpretation brings a layout to the footprint of `allocation_layout`.
    """

    backend: ClassVar[type["AttentionBackend"]]

    def __init__(
        self,
        layer: Layer,
        *,
        dtype: torch.dtype,
        block_size: int | None = None,
        allocation_layout: Layout | None = None,
        kv_sharing_target_layer_name: str | None = None,
        batch_invariant: bool = False,
        validate: bool = False,
        aiter: Aiter | None = None,
    ) -> None:
        check_type("layer", layer, Layer, "a Layer")
        check_type("validate", validate, bool, "a bool")
        check_type("aiter", aiter, Aiter | None, "None (the installed one) or an Aiter")
        check_type("kv_sharing_target_layer_name", kv_sharing_target_layer_name, str | None, "None or a layer's name")
        if kv_sharing_target_layer_name == "":
            raise ContractError("kv_sharing_target_layer_name", "''", "None or a layer's name")
        self.validate = validate
        self.aiter = find_aiter() if aiter is None else aiter
        self.capabilities = self.backend.capabilities(self.aiter)
        self.config = AttentionConfig.of(
            layer,
            dtype,
            block_size=block_size,
            batch_invariant=batch_invariant,
            kv_sharing=kv_sharing_target_layer_name is not None,
        )
        self._refuse(self.config)
        if layer.output_scale is not None:
            self._refuse_every_output()
        check_layer_logits(layer)  # once: with `validate` a forward would wait for the device
        self.kv_sharing_target_layer_name = kv_sharing_target_layer_name
        self._reinterprets = _must_reinterpret(layer.layout, allocation_layout)
        self.layer = dataclasses.replace(layer, layout=Layout.KV_FIRST_NHD) if self._reinterprets else layer
        # results of checks of a step: another step is checked again only if it brings something new
        self._served: set[tuple[object, ...]] = set()
        self._cache_shapes: set[torch.Size] = set()

    def _check_metadata(self, attn_metadata: Metadata) -> None:
        # No subclass: RankMlaMetadata is an MlaMetadata with lengths of one rank's keys, which a layer of all keys would read
        # as those of whole sequences.
        if type(attn_metadata) is not self.backend.builder.metadata:
            expected = f"{self.backend.builder.metadata.__name__}, as {self.backend.name}'s builder makes it"
            raise ContractError("attn_metadata", type(attn_metadata).__name__, expected)

    def _check_step(self, query: torch.Tensor, batch: Batch, output: torch.Tensor, lse: torch.Tensor | None) -> None:
        """Refuse properties and rules of a step that the layer was not made for."""
        if self.layer.q_scale is None:
            self._check_dtype("query", query)
        check_tensor("output", output)
        if self.layer.output_scale is None and self.layer.q_scale is not None:
            self._check_dtype("output", output)
        if self.layer.output_scale is not None and output.dtype not in FLOAT8_DTYPES:
            raise ContractError("output", output.dtype, "float8_e4m3fn or float8_e4m3fnuz: the layer has an output_scale")
        output_dtype = None if self.layer.output_scale is None else output.dtype
        causal = None if isinstance(batch.causal, torch.Tensor) else batch.causal  # whatever the flags of requests are
        key = (causal, *active_rules(batch), output_dtype, lse is not None)
        if key in self._served:
            return
        step = AttentionConfig.of(
            self.layer,
            self.config.dtype,
            block_size=self.config.block_size,
            batch=batch,
            output_dtype=output_dtype,
            lse=lse is not None,
            batch_invariant=self.config.asks("batch_invariant"),
            kv_sharing=self.config.asks("kv_sharing"),
        )
        self._refuse(step)
        self._served.add(key)

    def _check_dtype(self, name: str, tensor: torch.Tensor) -> None:
        check_tensor(name, tensor)
        if tensor.dtype != self.config.dtype:
            raise ContractError(name, tensor.dtype, f"{self.config.dtype}, the layer's dtype")

    def _own_view(self, kv_cache: torch.Tensor | None) -> torch.Tensor:
        """The cache as this layer must address it, in blocks of the layer's size."""
        if self.layer.layout is None:
            raise ContractError("layer.attn_type", self.layer.attn_type, "a type that has a KV cache")
        check_tensor("kv_cache", kv_cache)
        assert kv_cache is not None
        if self._reinterprets:
            kv_cache = self._as_planes(kv_cache)
        if kv_cache.shape not in self._cache_shapes:
            view = self.layer.view_of(kv_cache)
            if view.block_size != self.config.block_size:
                expected = f"{self.config.block_size}, the layer's block_size"
                raise ContractError("kv_cache", f"blocks of {view.block_size} slots", expected)
            self._cache_shapes.add(kv_cache.shape)
        return kv_cache

    def _as_planes(self, kv_cache: torch.Tensor) -> torch.Tensor:
        """A dense blocks-first view of planes, read as planes (vLLM #43945)."""
        if kv_cache.dim() != 5 or kv_cache.shape[1] != 2 or not kv_cache.is_contiguous():
            raise ContractError(
                "kv_cache",
                f"shape {tuple(kv_cache.shape)}, strides {tuple(kv_cache.stride())}",
                "a dense (NB, 2, BS, HK, D): only that covers the same bytes as planes of K and V",
            )
        num_blocks, _, *page = kv_cache.shape
        return kv_cache.view(2, num_blocks, *page)

    def _refuse_every_output(self) -> None:
        """Refuse a layer with an output_scale, if the backend serves no dtype that an output with a scale can have."""
        configs = [dataclasses.replace(self.config, output_dtype=dtype) for dtype in FLOAT8_DTYPES]
        if all(self.capabilities.refusals(config) for config in configs):
            self._refuse(configs[0])

    def _refuse(self, config: AttentionConfig) -> None:
        refusals = self.capabilities.refusals(config)
        if refusals:
            raise unsupported(self.capabilities.backend, refusals, _others(config, self.backend, self.aiter))


class AttentionImpl(AttentionImplBase[Metadata]):
    """One layer whose keys and values are plain: AttentionImplBase has the constructor."""

    @abstractmethod
    def forward(
        self,
        query: torch.Tensor,
        key: torch.Tensor | None,
        value: torch.Tensor | None,
        kv_cache: torch.Tensor | None,
        attn_metadata: Metadata,
        *,
        output: torch.Tensor,
        lse: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Attend: query to the cache, which holds this step's tokens already, or to key and value.

        Args:
            query: [T, H, D].
            key, value: this step's tokens [T, HK, D] and [T, HK, Dv], or None: layers with a cache read it alone. Dv is D but
                for a head_size_v.
            kv_cache: as the layer's layout says; None for types without a cache.
            attn_metadata: metadata of this backend's builder.
            output: [T, H, Dv] or [T, H * Dv], written in the rows that a request owns.
            lse: [H, T] float32, written like out.

        Returns:
            output.

        Raises:
            UnsupportedError: the step asks for what the backend does not do, such as causal=False. Nothing was written.
            ContractError: the arguments contradict the contract. Nothing was written.
        """

    def do_kv_cache_update(
        self, key: torch.Tensor | None, value: torch.Tensor | None, kv_cache: torch.Tensor, slot_mapping: torch.Tensor
    ) -> None:
        """Write this step's key [T_kv, HK, D] and value [T_kv, HK, Dv], unless another layer writes the cache or they are None.

        Cross-attention writes the encoder's tokens once: later steps bring none.

        Raises:
            ContractError: the arguments contradict the contract, written or not. Nothing was written.
        """
        own = self._own_view(kv_cache)
        if (key is None) != (value is None):
            raise ContractError("key" if key is None else "value", None, "key and value, or None for both")
        if key is None or value is None:
            check_vector("slot_mapping", slot_mapping, torch.int64)
            return
        self._check_dtype("key", key)
        if self.kv_sharing_target_layer_name is None:
            attn_optimized.write_kv_cache(key, value, own, self.layer, slot_mapping, validate=self.validate)
        else:
            check_write_kv_cache(key, value, own, self.layer, slot_mapping, values=self.validate)

    def do_rope_and_kv_cache_update(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        positions: torch.Tensor,
        cos_sin_cache: torch.Tensor,
        kv_cache: torch.Tensor,
        slot_mapping: torch.Tensor,
        *,
        is_neox: bool,
    ) -> None:
        """Rotate query in place and write rotated key, and value; see attn_optimized.rope_and_write_kv_cache.

        Raises:
            UnsupportedError: the backend or this layer does not rotate. Nothing was written.
            ContractError: the arguments contradict the contract. Nothing was written.
        """
        if self.kv_sharing_target_layer_name is not None:
            raise UnsupportedError(
                self.capabilities.backend,
                "RoPE in the cache write of a layer that shares another one's cache",
                f"{self.kv_sharing_target_layer_name} writes it, and the query would stay unrotated",
                "a rotation of the query alone",
            )
        self._refuse(self.config.with_rules(rope=True))
        for name, tensor in {"query": query, "key": key, "value": value}.items():
            self._check_dtype(name, tensor)
        attn_optimized.rope_and_write_kv_cache(
            query,
            key,
            value,
            positions,
            cos_sin_cache,
            self._own_view(kv_cache),
            self.layer,
            slot_mapping,
            is_neox=is_neox,
            validate=self.validate,
        )


class MLAAttentionImpl(AttentionImplBase[Metadata]):
    """One layer of latent attention (MLA), in the two forms of `attn_reference.latent`: AttentionImplBase has the constructor.

    The engine multiplies the queries of decodes by W_UK, and the outputs of `forward_mqa` by W_UV.
    """

    @abstractmethod
    def forward_mqa(
        self,
        query: torch.Tensor,
        kv_cache: torch.Tensor,
        attn_metadata: Metadata,
        *,
        output: torch.Tensor,
        lse: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """The rows of the step's decodes, absorbed: they read the cache, which holds this step's tokens already.

        Args:
            query: [T_d, N, Lkv + R], the rows `attn_metadata.decode.rows` of the step, in this order.
            kv_cache: [NB, BS, Lkv + R].
            attn_metadata: metadata of this backend's builder.
            output: [T_d, N, Lkv] or [T_d, N * Lkv], written in the rows that a request owns.
            lse: [N, T_d] float32, written like out.

        Returns:
            output.

        Raises:
            UnsupportedError: the step asks for what the backend does not do. Nothing was written.
            ContractError: the arguments contradict the contract, or the step has no decode. Nothing was written.
        """

    @abstractmethod
    def forward_mha(
        self,
        query: torch.Tensor,
        kv_c: torch.Tensor,
        k_pe: torch.Tensor,
        kv_cache: torch.Tensor,
        attn_metadata: Metadata,
        *,
        output: torch.Tensor,
        lse: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """The rows of the step's prefills, expanded: they read this step's own tokens, and of the cache the context before.

        Args:
            query: [T_p, N, P + R], the rows `attn_metadata.prefill.rows` of the step, in this order.
            kv_c, k_pe: [T_p, Lkv] and [T_p, R] of the same rows; k_pe is rotated already.
            kv_cache: [NB, BS, Lkv + R].
            attn_metadata: metadata of this backend's builder.
            output: [T_p, N, V] or [T_p, N * V].
            lse: [N, T_p] float32.

        Returns:
            output.

        Raises:
            UnsupportedError: the step asks for what the backend does not do. Nothing was written.
            ContractError: the arguments contradict the contract, or the step has no prefill. Nothing was written.
        """

    def do_kv_cache_update(
        self, kv_c: torch.Tensor, k_pe: torch.Tensor, kv_cache: torch.Tensor, slot_mapping: torch.Tensor
    ) -> None:
        """Write this step's latent vectors kv_c [S, Lkv] and rotated keys k_pe [S, R].

        Raises:
            ContractError: the arguments contradict the contract. Nothing was written.
        """
        kv_cache = self._own_view(kv_cache)
        self._check_dtype("kv_c", kv_c)
        attn_optimized.write_latent_cache(kv_c, k_pe, kv_cache, self.layer, slot_mapping, validate=self.validate)


class AttentionBackend(ABC):
    """A backend: what it can do, and the classes that do it."""

    name: ClassVar[str]
    impl: ClassVar[type[AttentionImplBase[Any]]]
    builder: ClassVar[type[AttentionMetadataBuilder[Any]]]

    def __init_subclass__(cls) -> None:
        if "impl" in vars(cls):  # an inherited impl stays that of its own backend
            cls.impl.backend = cls

    @classmethod
    @abstractmethod
    def capabilities(cls, aiter: Aiter) -> Capabilities:
        """The one declaration, for a given AITER. The selector, the check of `impl` and the docs use it."""

    @classmethod
    def over_ranks(cls) -> type["AttentionBackend"]:
        """The same backend for layers whose cache ranks share (decode context parallelism).

        Raises:
            UnsupportedError: the backend serves no such layer.
        """
        reason = "attn_optimized.context_parallel attends over ranks, and this backend does not call it"
        raise UnsupportedError(cls.name, "a cache that ranks share", reason, "TRITON_MLA, for latent attention")


def _must_reinterpret(layout: Layout | None, allocation_layout: Layout | None) -> bool:
    if allocation_layout is None:
        return False
    check_type("allocation_layout", allocation_layout, Layout, f"None or a Layout: {', '.join(Layout)}")
    if layout is None:
        raise ContractError("allocation_layout", allocation_layout, "None: the layer has no KV cache")
    if layout.has_inline_scales != allocation_layout.has_inline_scales:
        holding = ", ".join(one for one in Layout if one.has_inline_scales)
        expected = f"one of {layout}'s footprint: only {holding} have scales of their own"
        raise ContractError("allocation_layout", allocation_layout, expected)
    if layout.has_latent_value != allocation_layout.has_latent_value:
        expected = f"one of {layout}'s footprint: only in latent layouts is V the beginning of K's row"
        raise ContractError("allocation_layout", allocation_layout, expected)
    if (layout in PLANES_FIRST) == (allocation_layout in PLANES_FIRST):
        return False
    if layout is not Layout.BLOCKS_FIRST_NHD:
        raise ContractError(
            "allocation_layout",
            allocation_layout,
            f"one of {layout}'s footprint: only BLOCKS_FIRST_NHD can be reinterpreted as planes of K and V",
        )
    return True


def _others(config: AttentionConfig, backend: type[AttentionBackend], aiter: Aiter) -> str | None:
    """The names of other backends that serve a config, joined by "or"."""
    from attn_optimized.backends import BACKENDS

    serving = [
        other.name for other in BACKENDS.values() if other is not backend and not other.capabilities(aiter).refusals(config)
    ]
    return " or ".join(serving) or None
