"""The properties of a layer, and of its steps, that select a backend before there is a tensor."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch

from attn_contract.arguments import check_int, check_type, named, shown
from attn_contract.attention_type import AttentionType
from attn_contract.batch import Batch
from attn_contract.errors import ContractError
from attn_contract.layer import (
    FLOAT8_DTYPES,
    FLOAT_DTYPES,
    Q_SCALE_BESIDE,
    QUANTIZED_DTYPES,
    Layer,
    checked_v_head_size,
    expected_cache_dtype,
    has_latent_value,
    why_not_stored,
)
from attn_contract.layouts import LATENT_FORMATS, Layout
from attn_contract.rules import RULES, active_rules, check_together, rule_named

Scales = Literal["tensor", "head", "token", "inline"]
"""The granularity of a quantized cache's scales.

`tensor`: k_scale and v_scale, one number for all heads. `head`: k_scale and v_scale, one number per KV head. `token`:
k_scale_cache and v_scale_cache, one number per token and head. `inline`: one number per token and head in the cache's rows, or
one for each 128, 64 or 32 dims of a latent row.
"""


@dataclass(frozen=True, kw_only=True)
class AttentionConfig:
    """Requirements of a model and an engine for one layer. A backend is selected by them, before there is a tensor.

    Args:
        num_heads, num_kv_heads, head_size, attn_type: as in Layer.
        dtype: the dtype of q, k and v: float32, float16 or bfloat16. With the rule q_scale it is the dtype
            of k, v and the output, and q has kv_cache_dtype.
        block_size: slots of a block; None exactly for the types that have no cache.
        layout: the layout of the cache, if the engine has decided; None leaves the choice to the backend. With a head_size_v
            and one KV head the backend chooses a latent layout, unless V is wider than K: CONTENT_PACKED must be named.
        kv_cache_dtype: the element type of a quantized cache; None: the cache is of `dtype`.
        scales: the kind of scales of a quantized cache; None exactly where kv_cache_dtype is None.
        output_dtype: the float8 type of an output with an output scale; None: the output is of `dtype`.
        top_k: the most units that an indexer selects for a query, as in Indexer; None: it is unknown, or the layer selects
            none.
        rules: by the rule's name, the value of each rule that the layer or one of its steps asks for: as in Layer, or True for
            a tensor. Values that are off are dropped. A DECODER asks for `non_causal` if it may see steps with causal=False,
            and for `per_request_causal` if one step may hold both kinds of requests. A layer asks for `lse` if the caller wants
            the LSE; for `batch_invariant` if outputs must not depend on the rest of the batch; for `rope` if the cache write
            also rotates; for `kv_sharing` if it reads what another layer wrote, and writes nothing; for `over_ranks` if several
            ranks share the keys of each request (decode context parallelism).

    Raises:
        ContractError: a field has another type, is out of range or contradicts another one.
    """

    num_heads: int
    num_kv_heads: int
    head_size: int
    dtype: torch.dtype
    attn_type: AttentionType = AttentionType.DECODER
    block_size: int | None = None
    layout: Layout | None = None
    kv_cache_dtype: torch.dtype | None = None
    scales: Scales | None = None
    output_dtype: torch.dtype | None = None
    top_k: int | None = None
    rules: Mapping[str, Any] = dataclasses.field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        for name in ("num_heads", "num_kv_heads", "head_size"):
            check_int(name, getattr(self, name), minimum=1)
        if self.num_heads % self.num_kv_heads:
            raise ContractError("num_heads", self.num_heads, f"a multiple of num_kv_heads ({self.num_kv_heads})")
        check_type("attn_type", self.attn_type, AttentionType, f"an AttentionType: {', '.join(AttentionType)}")
        if self.layout is not None:
            check_type("layout", self.layout, Layout, f"None or a Layout: {', '.join(Layout)}")
        _check_one_of("dtype", self.dtype, FLOAT_DTYPES)
        if why_not_stored(named(self.kv_cache_dtype)):
            raise ContractError("kv_cache_dtype", named(self.kv_cache_dtype), expected_cache_dtype(named(self.kv_cache_dtype)))
        _check_one_of("kv_cache_dtype", self.kv_cache_dtype, (None, *QUANTIZED_DTYPES))
        _check_one_of("output_dtype", self.output_dtype, (None, *FLOAT8_DTYPES))
        _check_one_of("scales", self.scales, (None, *get_args(Scales)))
        if (self.kv_cache_dtype is None) != (self.scales is None):
            expected = f"one of {', '.join(get_args(Scales))} with a kv_cache_dtype, and None without"
            raise ContractError("scales", self.scales, expected)
        if self.kv_cache_dtype == torch.int8 and self.scales in ("tensor", "head"):
            raise ContractError("scales", self.scales, "token or inline: int8 has one scale per token")
        if self.attn_type.reads_cache or self.block_size is not None:
            check_int("block_size", self.block_size, minimum=1)
        if not self.attn_type.reads_cache:
            for name in ("block_size", "layout", "kv_cache_dtype"):
                if (got := getattr(self, name)) is not None:
                    raise ContractError(name, named(got), f"None: {self.attn_type} has no KV cache")
        if self.layout is not None and self.layout.has_inline_scales != (self.scales == "inline"):
            holding = ", ".join(layout for layout in Layout if layout.has_inline_scales)
            expected = f"one for scales {self.scales}: only {holding} hold their own"
            raise ContractError("layout", self.layout, expected)
        self._check_rules()
        if self.top_k is not None:
            check_int("top_k", self.top_k, minimum=1)
            if not self.asks("selection_unit"):
                raise ContractError("top_k", self.top_k, "None without a selection_unit: the layer attends to all keys")

    def _check_rules(self) -> None:
        """Check values as Layer and Batch do, as far as that needs no tensor, and drop the values that are off."""
        check_type("rules", self.rules, Mapping, "values by the name of a rule")
        kept = {}
        for name, value in self.rules.items():
            rule = rule_named("rules", name)
            if rule.is_tensor:
                check_type(name, value, bool, "a bool: whether there is one")
            else:
                value = rule.checked(value)
            if value is not False and rule.is_asked(value):
                rule.check_defined(value, self.attn_type)
                kept[name] = value
        kept["head_size_v"] = checked_v_head_size(kept.get("head_size_v"), self)
        object.__setattr__(self, "rules", {name: kept[name] for name in RULES if kept.get(name) is not None})
        check_together(self.rules)
        if self.asks("per_request_causal") and not self.asks("non_causal"):
            raise ContractError("per_request_causal", True, "non_causal=True with it: some requests are non-causal")
        if self.asks("q_scale") and self.kv_cache_dtype not in FLOAT8_DTYPES:
            raise ContractError("q_scale", f"True with kv_cache_dtype {named(self.kv_cache_dtype)}", Q_SCALE_BESIDE)
        if self.asks("rope") and self.asks("q_scale"):
            raise ContractError("rope", True, "False with q_scale: queries are rotated before they are quantized")
        if self.asks("rope") and self.asks("kv_sharing"):
            raise ContractError("rope", True, "False with kv_sharing: it writes nothing that could be rotated")
        if self.has_latent_cache and self.scales not in (None, "tensor", "inline"):
            raise ContractError("scales", self.scales, "None, tensor or inline: a latent cache has one k_scale, or inline ones")
        if self.has_two_widths and self.scales == "inline":
            raise ContractError("scales", self.scales, "tensor, head or token: rows of K and V of two widths hold no scales")
        if self.scales == "inline" and self.block_size is not None:
            self._check_inline_scales(self.block_size)
        if self.has_latent_cache and self.asks("rope"):
            raise ContractError("rope", True, "False with a latent cache: write_latent_cache takes k_pe rotated")

    def _check_inline_scales(self, block_size: int) -> None:
        """Check the sizes and dtypes for rows with scales, also if the backend chooses the layout."""
        if not self.has_latent_cache:
            Layout.CONTENT_PACKED_SCALED.check_sizes(self.head_size, block_size, itemsize=1)
            return
        wrong = []
        layouts = [self.layout] if self.layout else list(LATENT_FORMATS)
        for layout in layouts:
            try:
                layout.check_widths(self.head_size, self.v_head_size)
            except ContractError as error:
                wrong.append(error)
        if len(wrong) == len(layouts):
            raise wrong[0]
        if self.kv_cache_dtype not in FLOAT8_DTYPES:
            raise ContractError("kv_cache_dtype", self.kv_cache_dtype, "a float8: latent rows with scales hold no other type")
        if self.dtype != torch.bfloat16:
            raise ContractError("dtype", self.dtype, "torch.bfloat16: latent rows with scales are for no other dtype")

    @property
    def v_head_size(self) -> int:
        """The width of V and of the output."""
        return self.value_of("head_size_v") or self.head_size

    @property
    def has_latent_cache(self) -> bool:
        """True if the cache is latent.

        If the backend chooses the layout, the cache is latent if it has a head_size_v and one KV head, and V is no wider than
        K.
        """
        return has_latent_value(self, self.rules.get("head_size_v"))

    @property
    def has_two_widths(self) -> bool:
        """True if the cache's rows hold K and then V of another width, also if the backend chooses the layout."""
        return self.attn_type.reads_cache and self.asks("head_size_v") and not self.has_latent_cache

    def asks(self, name: str) -> bool:
        """True if a rule is on. An unknown name is a ContractError."""
        return rule_named("name", name).name in self.rules

    def value_of(self, name: str) -> Any:
        """The value of a rule, or its off value. An unknown name is a ContractError."""
        return self.rules.get(name, rule_named("name", name).off)

    def with_rules(self, **rules: Any) -> "AttentionConfig":
        """The same config, with these rules in addition or instead."""
        return dataclasses.replace(self, rules={**self.rules, **rules})

    @classmethod
    def of(
        cls,
        layer: Layer,
        dtype: torch.dtype,
        *,
        block_size: int | None,
        batch: Batch | None = None,
        output_dtype: torch.dtype | None = None,
        **rules: Any,
    ) -> "AttentionConfig":
        """Requirements of a layer, or of a layer in one step.

        Args:
            dtype: the dtype of q, k and v.
            block_size: slots of a block; None for the types that have no cache.
            batch: the step; None: what the layer asks for in all steps.
            output_dtype: the dtype of a float8 output.
            rules: further requests of the caller: lse, batch_invariant, rope, kv_sharing, over_ranks; without a batch also
                non_causal and per_request_causal.

        Raises:
            ContractError: `rules` names what the layer or the batch says, or the arguments contradict each other.
        """
        held = active_rules(layer) if batch is None else active_rules(layer, batch)
        held = {name: isinstance(value, torch.Tensor) or value for name, value in held.items()}
        if batch is not None:
            decoder = layer.attn_type is AttentionType.DECODER
            held["non_causal"] = decoder and batch.causal is not True
            held["per_request_causal"] = decoder and isinstance(batch.causal, torch.Tensor)
        for name, value in rules.items():
            if name in held or rule_named("rules", name).holder != "call":
                raise ContractError(name, shown(value), "no value of its own: the layer or the batch says it")
        return cls(
            num_heads=layer.num_heads,
            num_kv_heads=layer.num_kv_heads,
            head_size=layer.head_size,
            dtype=dtype,
            attn_type=layer.attn_type,
            block_size=block_size,
            layout=layer.layout,
            kv_cache_dtype=layer.kv_cache_dtype,
            scales=scales_of(layer),
            output_dtype=output_dtype,
            rules={**held, **rules},
        )

    @property
    def group_size(self) -> int:
        return self.num_heads // self.num_kv_heads

    @property
    def itemsize(self) -> int:
        """Bytes of an element of the cache."""
        return (self.kv_cache_dtype or self.dtype).itemsize


def scales_of(layer: Layer) -> Scales | None:
    """The kind of scales of a layer's quantized cache; None if it is not quantized."""
    if layer.kv_cache_dtype is None:
        return None
    if layer.layout is not None and layer.layout.has_inline_scales:
        return "inline"
    fixed = [scale.numel() for scale in (layer.k_scale, layer.v_scale) if scale is not None]
    return "token" if not fixed else "tensor" if max(fixed) == 1 else "head"


def _check_one_of(name: str, value: object, allowed: tuple[Any, ...]) -> None:
    if not any(value is one or (type(value) is type(one) and value == one) for one in allowed):
        raise ContractError(name, shown(value), f"one of {', '.join(named(one) for one in allowed)}")
