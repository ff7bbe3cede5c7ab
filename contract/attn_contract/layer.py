"""The parameters of one attention layer of a model that no step changes."""

from dataclasses import dataclass, fields
from functools import cached_property, partial
from typing import Any, Final, TypeVar

import torch

from attn_contract.arguments import check_dense_last, check_int, check_tensor, check_type, check_vector, named, shown
from attn_contract.attention_type import AttentionType
from attn_contract.errors import ContractError
from attn_contract.kv_cache_view import KVCacheView
from attn_contract.layouts import Layout
from attn_contract.rule_types import check_number, check_optional_number, check_pair
from attn_contract.rules import (
    BLOCKS,
    CACHED,
    DECODER_ONLY,
    HEADS,
    KV_HEADS,
    LOGITS,
    OWN,
    SELF_ATTENTION,
    SOFTMAX,
    VALUES,
    VISIBILITY,
    active_rules,
    axes_of,
    check_together,
    held_rules,
    holds_rules,
    rule,
    with_axes,
)
from attn_contract.scope import refuse_out_of_scope
from attn_contract.signatures import Signature

FLOAT_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
FLOAT8_DTYPES = (torch.float8_e4m3fn, torch.float8_e4m3fnuz)
QUANTIZED_DTYPES = (*FLOAT8_DTYPES, torch.int8)
UNLIMITED = -1
Q_SCALE_BESIDE = "None, or a float8 kv_cache_dtype, which q then has, too: engines quantize queries for float8 dots alone"
SMALLEST_NORMAL = torch.finfo(torch.float32).tiny
"""2^-126, the least scale: GPUs may take a smaller number for 0, and kernels multiply and divide by scales."""
MAX_SCALE, MAX_SOFT_CAP = 2.0**64, 2.0**32

Count = TypeVar("Count", int, torch.Tensor)


_check_window = partial(check_pair, minimum=UNLIMITED, expected="a tuple (left, right)")
_check_optional_size = partial(check_optional_number, minimum=1)


def _check_soft_cap(name: str, value: Any, _: object) -> float | None:
    if value is None:
        return None
    if not _is_factor(value, MAX_SOFT_CAP) or value < 0:
        raise ContractError(name, shown(value), "None or 0 (off), or a number from 2^-126 to 2^32")
    return float(value) or None


def _check_slopes(name: str, value: Any, layer: "Layer") -> torch.Tensor:
    check_vector(name, value, torch.float32)
    return _one_per_head(name, value, layer)


def _check_sinks(name: str, value: Any, layer: "Layer") -> torch.Tensor:
    check_tensor(name, value)
    _one_per_head(name, value, layer)
    if value.dtype not in FLOAT_DTYPES:
        raise ContractError(name, value.dtype, "float32, float16 or bfloat16")
    check_dense_last(name, value)
    return value


def _check_q_scale(name: str, value: Any, layer: "Layer") -> torch.Tensor:
    check_scale(name, value, heads=layer.num_kv_heads)
    if layer.kv_cache_dtype not in FLOAT8_DTYPES:
        raise ContractError(name, f"a tensor with kv_cache_dtype {named(layer.kv_cache_dtype)}", Q_SCALE_BESIDE)
    return value


def _one_per_head(name: str, tensor: torch.Tensor, layer: "Layer") -> torch.Tensor:
    if tuple(tensor.shape) != (layer.num_heads,):
        raise ContractError(name, f"shape {tuple(tensor.shape)}", f"shape ({layer.num_heads},): one per query head")
    return tensor


_OF_POSITIONS: dict[str, Any] = {
    "attn_types": SELF_ATTENTION,
    "why_not": "query and key positions belong to different sequences",
}


@holds_rules
@dataclass(frozen=True, eq=False, kw_only=True)
class Layer:
    """One attention layer. `attn_reference.masks` defines which keys a query sees, `attn_reference.attention` what a logit is.

    Args:
        num_heads: query heads H.
        num_kv_heads: KV heads HK; H is a multiple of HK, and query head h reads KV head `h // (H // HK)`.
        head_size: D, the width of q and k.
        scale: factor of q.k, usually `head_size ** -0.5`: 0, or of a magnitude from 2^-126 to 2^64. That of latent attention is
            not `head_size ** -0.5`: see `attn_reference.latent`.
        attn_type: the origin of the keys.
        window: (left, right), inclusive: a query at position p sees keys in [p - left, p + right]; -1 is unlimited, 0 is
            a real window (only itself). A model's `sliding_window=W` counts the token itself and is (W - 1, W - 1).
        sink_tokens: the first keys of a request, which stay visible outside the window (StreamingLLM; AITER's `sink_size`).
            Not the same as `sinks`.
        chunked_local: C: positions are cut into chunks of C, and a query sees only keys of its chunk (Llama 4). None is off.
        selection_unit: g: each step selects the keys that a query sees, in units of g tokens: unit c is the positions
            [c * g, (c + 1) * g). Beside a key_unit, g counts keys, and unit c is the keys of these numbers. `Batch.selected`
            names the units (DeepSeek-V3.2's tokens, arXiv:2512.02556; blocks of MiniMax-M3). The other rules hide keys of
            selected units, too. In X_PACKED and SHUFFLED it is a multiple of the elements of 16 bytes. DECODER
            only. None: nothing is selected.
        key_unit: g, at least 2: g tokens share one key of the cache, which a model made of them (DeepSeek-V4's entries of 4 and
            of 128 tokens). Key c stands for the tokens [c * g, (c + 1) * g), at the position of the last of them, and exists
            once all of them do: a request has `seq_len // g` keys, and the query at p sees the first `(p + 1) // g` of them.
            Lengths and positions of queries count tokens. Slots, block tables and selection_unit count keys. How a key
            is made is not defined here; a cache write stores it in its slot. Another layer's call sees the tokens of a window,
            and `merge_attn_states` makes one softmax of both, in which a token of the window counts beside the key that it
            shares, as in DeepSeek-V4. It has none of the other rules of positions, and is causal.
        ranges_clamped: True if the left edge of the window also holds inside the batch's `bidirectional_ranges`, as in Gemma 3
            and 4 and transformers. vLLM ignores the window inside a range, except for Gemma 4.
        logits_soft_cap: c of `c * tanh(s / c)`, applied to scaled logits (Gemma 2), from 2^-126 to 2^32. None or 0 is off.
        alibi_slopes: [H] float32: the logit of key j is lowered by `slope * abs(j - p)` (Press et al., arXiv:2108.12409).
        q_scale: float32, [] or [1] for all heads, or [HK]: q is float8, and the query is q times the number of its KV head, as
            vLLM's `q_scale` and FlashAttention-3's `q_descale` have it. It is positive, and at least 2^-126. The cache is of
            the same float8 type. q does not say the output's dtype then: `out` must be given.
        sinks: [H] float32, float16 or bfloat16: one logit per query head. It is not scaled, joins the denominator of each row's
            softmax and has no value (GPT-OSS). -inf is no sink. A finite one is at most 2^126 in magnitude.
        head_size_v: the width of v and of out. None: v is as wide as k. Dense k and v (ENCODER, ENCODER_ONLY) may have any two
            widths, and so may K and V in the rows of CONTENT_PACKED. No other layout stores V of another width. In a latent
            layout V is the first head_size_v dims of K; there it must be given, even if it is head_size.
        layout: the layout of the KV cache; None exactly for the types that have no cache.
        kv_cache_dtype: torch.float8_e4m3fn, torch.float8_e4m3fnuz or torch.int8 of a quantized cache, which needs scales:
            per tensor or head, per token and head, or inline (CONTENT_PACKED_SCALED). An int8 cache needs one scale per token
            and head. A LATENT cache is float8 with one k_scale, one of another latent layout float8 with scales in its pages.
            None: the cache is of q's dtype.
        k_scale, v_scale: float32, [] or [1] for all heads, or [HK]: the cache stores value / scale. They are positive, and at
            least 2^-126. In LATENT there is no v_scale: V is part of K, and k_scale is the scale of both.
        k_scale_cache, v_scale_cache: [NB, BS, HK] float32, any strides: one scale per token and head, which `write_kv_cache`
            computes and writes. Scales of another writer may also be 0 or negative.
        output_scale: [] or [1] float32, at least 2^-126: `out` is of a float8 type and holds output / scale.

    Cross-attention (ENCODER_DECODER) has no window, sink_tokens, chunked_local or alibi_slopes: its query and key positions
    belong to different sequences. No encoder's keys are latent.

    Raises:
        ContractError: a field has another type, is out of range or contradicts another one.
        UnsupportedError: an argument is out of this project's scope, such as `dropout_p`.
    """

    num_heads: int
    num_kv_heads: int
    head_size: int
    scale: float
    attn_type: AttentionType = AttentionType.DECODER
    window: tuple[int, int] = rule(
        (UNLIMITED, UNLIMITED), label="a sliding window", acts_on=VISIBILITY, check=_check_window, **_OF_POSITIONS
    )
    sink_tokens: int = rule(
        0,
        label="tokens at the start that a window keeps visible (sink_tokens)",
        acts_on=VISIBILITY,
        check=partial(check_number, minimum=0),
        **_OF_POSITIONS,
    )
    chunked_local: int | None = rule(
        None, label="attention in chunks (chunked_local)", acts_on=VISIBILITY, check=_check_optional_size, **_OF_POSITIONS
    )
    selection_unit: int | None = rule(
        None,
        label="a selection of keys (selection_unit)",
        acts_on=VISIBILITY,
        check=_check_optional_size,
        attn_types=DECODER_ONLY,
        why_not="only DECODER has a selection",
    )
    key_unit: int | None = rule(
        None,
        label="keys of several tokens (key_unit)",
        acts_on=VISIBILITY,
        check=partial(check_optional_number, minimum=2),
        attn_types=DECODER_ONLY,
        why_not="only DECODER has keys of several tokens",
        excludes=(
            *("window", "sink_tokens", "chunked_local", "ranges_clamped", "alibi_slopes", "bidirectional_ranges", "qq_bias"),
            *("non_causal", "per_request_causal", "rope", "over_ranks"),
        ),
        why_excluded="a key of several tokens has no other rule of positions, is seen causally, and is stored as it is",
    )
    ranges_clamped: bool = rule(
        False,
        label="bidirectional ranges clamped by the window",
        acts_on=VISIBILITY,
        attn_types=DECODER_ONLY,
        why_not="only DECODER has bidirectional ranges",
    )
    logits_soft_cap: float | None = rule(None, label="a soft cap of the logits", acts_on=LOGITS, check=_check_soft_cap)
    q_scale: torch.Tensor | None = rule(
        None,
        label="float8 queries (q_scale)",
        acts_on=LOGITS,
        axes=(KV_HEADS,),
        check=_check_q_scale,
        attn_types=CACHED,
        why_not="only a cache is float8, and dense keys have no scale",
    )
    alibi_slopes: torch.Tensor | None = rule(
        None, label="ALiBi", acts_on=LOGITS, axes=(HEADS,), check=_check_slopes, **_OF_POSITIONS
    )
    sinks: torch.Tensor | None = rule(None, label="sinks", acts_on=SOFTMAX, axes=(HEADS,), check=_check_sinks)
    head_size_v: int | None = rule(
        None,
        label="a head size of V other than K's (head_size_v)",
        acts_on=VALUES,
        check=_check_optional_size,
    )
    layout: Layout | None = None
    kv_cache_dtype: torch.dtype | None = None
    k_scale: torch.Tensor | None = with_axes(KV_HEADS, default=None)
    v_scale: torch.Tensor | None = with_axes(KV_HEADS, default=None)
    k_scale_cache: torch.Tensor | None = with_axes(BLOCKS, OWN, KV_HEADS, default=None)
    v_scale_cache: torch.Tensor | None = with_axes(BLOCKS, OWN, KV_HEADS, default=None)
    output_scale: torch.Tensor | None = with_axes(OWN, default=None)

    def __new__(cls, **settings: Any) -> "Layer":
        refuse_out_of_scope(settings)
        return super().__new__(cls)

    def __post_init__(self) -> None:
        for name in ("num_heads", "num_kv_heads", "head_size"):
            check_int(name, getattr(self, name), minimum=1)
        if self.num_heads % self.num_kv_heads:
            raise ContractError(
                "num_heads", self.num_heads, f"a multiple of num_kv_heads ({self.num_kv_heads}), so that heads form groups"
            )
        if not _is_factor(self.scale, MAX_SCALE):
            expected = "0 or a number from 2^-126 (GPUs may take a smaller one for 0) to 2^64 in magnitude"
            raise ContractError("scale", shown(self.scale), expected)
        object.__setattr__(self, "scale", float(self.scale))
        check_type("attn_type", self.attn_type, AttentionType, f"an AttentionType: {', '.join(AttentionType)}")
        for name, record in held_rules(self).items():
            value = record.checked(getattr(self, name), self)
            object.__setattr__(self, name, value)
            record.check_defined(value, self.attn_type)
        check_together(active_rules(self))
        self._check_cache()
        object.__setattr__(self, "head_size_v", checked_v_head_size(self.head_size_v, self))
        if self.output_scale is not None:
            check_scale("output_scale", self.output_scale, heads=1)

    @property
    def v_head_size(self) -> int:
        """The width of v and of out."""
        return self.head_size_v or self.head_size

    @property
    def tokens_per_key(self) -> int:
        """The number of tokens that share a key; 1 if each has its own."""
        return self.key_unit or 1

    def num_keys(self, num_tokens: Count) -> Count:
        """The number of keys in the cache for a number of tokens of a request."""
        return num_tokens // self.tokens_per_key

    def view_of(self, kv_cache: torch.Tensor) -> KVCacheView:
        """This layer's view of a cache tensor, which has the addresses of its elements.

        Raises:
            ContractError: the layer has no cache, or what `KVCacheView.of` refuses.
        """
        if self.layout is None:
            raise ContractError("layer.attn_type", self.attn_type, "a type that has a KV cache")
        sizes = {"num_kv_heads": self.num_kv_heads, "head_size": self.head_size, "head_size_v": self.head_size_v}
        return KVCacheView.of(kv_cache, self.layout, **sizes)

    @cached_property
    def tensors(self) -> dict[str, torch.Tensor]:
        """The fields that are tensors, by name."""
        return {name: value for name, value in vars(self).items() if isinstance(value, torch.Tensor)}

    @cached_property
    def signature(self) -> Signature:
        return Signature({field.name: getattr(self, field.name) for field in fields(self)})

    def _check_cache(self) -> None:
        if self.layout is not None:
            check_type("layout", self.layout, Layout, f"None or a Layout: {', '.join(Layout)}")
        if self.attn_type.reads_cache != (self.layout is not None):
            expected = "a Layout: its keys come from the KV cache" if self.attn_type.reads_cache else "None: it has no KV cache"
            raise ContractError("layout", f"{self.layout} with attn_type={self.attn_type}", expected)
        if self.kv_cache_dtype is not None:
            check_type("kv_cache_dtype", self.kv_cache_dtype, torch.dtype, "None (q's dtype) or a torch.dtype")
            if self.layout is None:
                raise ContractError("kv_cache_dtype", self.kv_cache_dtype, f"None: {self.attn_type} has no KV cache")
        if self.kv_cache_dtype not in (None, *QUANTIZED_DTYPES):
            raise ContractError("kv_cache_dtype", self.kv_cache_dtype, expected_cache_dtype(named(self.kv_cache_dtype)))
        self._check_scales()

    def _check_scales(self) -> None:
        """A quantized cache has exactly one kind of scales. Any other cache has none."""
        if self.layout is not None and self.layout.has_latent_value:
            self._check_latent_scale()
            return
        fixed, cached = ("k_scale", "v_scale"), ("k_scale_cache", "v_scale_cache")
        given = [pair for pair in (fixed, cached) if any(getattr(self, name) is not None for name in pair)]
        kinds = [" and ".join(pair) for pair in given]
        if self.layout is not None and self.layout.has_inline_scales:
            kinds.append(f"those in the rows of {self.layout}")
        if self.kv_cache_dtype is None:
            if kinds:
                raise ContractError("kv_cache_dtype", None, f"a quantized dtype, since there are scales: {kinds[0]}")
            return
        if len(kinds) != 1:
            expected = f"for {self.kv_cache_dtype} either {' and '.join(fixed)}, or {' and '.join(cached)}, or inline scales"
            raise ContractError("k_scale", "; ".join(kinds) or "no scales", expected)
        if self.kv_cache_dtype == torch.int8 and fixed in given:
            raise ContractError("k_scale", "scales for all tokens", "k_scale_cache or inline scales: int8 has one per token")
        for pair in given:
            for name in pair:
                scale = getattr(self, name)
                if scale is None:
                    raise ContractError(name, None, f"a tensor: {' and '.join(pair)} come together")
                if pair is fixed:
                    check_scale(name, scale, heads=self.num_kv_heads)
                else:
                    _check_scale_cache(name, scale, self.num_kv_heads)

    def _check_latent_scale(self) -> None:
        """A quantized latent cache has one scale, or scales in its rows: V is part of K."""
        if self.kv_cache_dtype == torch.int8:
            raise ContractError("kv_cache_dtype", torch.int8, f"a float8 in layout {self.layout}")
        for name in ("v_scale", "k_scale_cache", "v_scale_cache"):
            if getattr(self, name) is not None:
                raise ContractError(name, "a tensor", f"None in layout {self.layout}: K and V have the same scales")
        if self.layout is not None and self.layout.latent_format is not None:
            if self.k_scale is not None:
                raise ContractError("k_scale", "a tensor", f"None in layout {self.layout}: its rows hold their scales")
            if self.kv_cache_dtype is None:
                raise ContractError("kv_cache_dtype", None, f"a float8 in layout {self.layout}: its rows hold scales")
        elif self.k_scale is not None:
            check_scale("k_scale", self.k_scale, heads=1)
            if self.kv_cache_dtype is None:
                raise ContractError("kv_cache_dtype", None, "a quantized dtype, since there are scales: k_scale")
        elif self.kv_cache_dtype is not None:
            raise ContractError("k_scale", None, f"a tensor: the scale of a cache of {self.kv_cache_dtype}")


def checked_v_head_size(head_size_v: int | None, asking: Any) -> int | None:
    """The width of V, checked against the other sizes and the layout of a Layer or an AttentionConfig.

    Returns:
        None if V is stored apart from K and is as wide as K.

    Raises:
        ContractError: the layout holds K and V in one width; V is wider than the row that it begins, or its rows cannot have
            such scales; or a latent cache is an encoder's, has several KV heads, or no head_size_v.
    """
    layout = asking.layout
    if not has_latent_value(asking, head_size_v):
        if layout is not None:
            layout.check_widths(asking.head_size, head_size_v)
        return None if head_size_v == asking.head_size else head_size_v
    if asking.attn_type is not AttentionType.DECODER:
        raise ContractError("layout", layout, f"another one for {asking.attn_type.name}: no encoder's keys are latent")
    if head_size_v is None:
        raise ContractError("head_size_v", None, f"the width of V in layout {layout}, at most head_size")
    if head_size_v > asking.head_size:
        expected = f"at most head_size ({asking.head_size}): V is the beginning of K's row"
        raise ContractError("head_size_v", head_size_v, expected)
    if asking.num_kv_heads != 1:
        raise ContractError("num_kv_heads", asking.num_kv_heads, "1: a latent cache has one KV head")
    if layout is not None:
        layout.check_widths(asking.head_size, head_size_v)
    return head_size_v


def has_latent_value(asking: Any, head_size_v: int | None) -> bool:
    """True if V is the beginning of K in the cache of a Layer or an AttentionConfig.

    Without a layout, a head_size_v means so if it can: with one KV head, and with a V that is no wider than K.
    """
    if asking.layout is not None:
        return asking.layout.has_latent_value
    if head_size_v is None or asking.attn_type is not AttentionType.DECODER:
        return False
    return asking.num_kv_heads == 1 and head_size_v <= asking.head_size


def why_not_stored(name: str) -> str:
    """The reason why no cache holds elements of a type, by its name in torch or an engine; empty if none is known."""
    if "e5m2" in name:
        return "two bits of mantissa are too few for keys and values"
    for form, reason in _FOUR_BITS.items():
        if form in name:
            return reason
    return ""


_FOUR_BITS = {
    "int4": "int4 packs two dims in a byte, and no layout addresses half a byte",
    "mxfp4": "MXFP4 has a scale of eight bits for each 32 dims, which no layout has room for",
    "nvfp4": "NVFP4 has a float8 scale for each 16 dims, and a second one for all, which no layout has room for",
    "float4": "float4 packs two dims in a byte (MXFP4, NVFP4), and no layout has room for the scales of 16 or 32 dims",
    "4bit": "dims of four bits are packed, and no layout addresses half a byte",
}


def expected_cache_dtype(name: str) -> str:
    """The types of a cache, for a message about another one."""
    reason = why_not_stored(name)
    return "None (q's dtype), torch.float8_e4m3fn, torch.float8_e4m3fnuz or torch.int8" + (f": {reason}" if reason else "")


SCALES: Final = tuple(name for name in axes_of(Layer) if name.endswith("_scale"))
"""The fields of Layer that are scales of one number, or of one for each KV head."""


def check_scale(name: str, scale: torch.Tensor, *, heads: int) -> None:
    """Check that a scale is float32, one number or one for each of the heads."""
    check_tensor(name, scale)
    if scale.dtype != torch.float32 or tuple(scale.shape) not in ((), (1,), (heads,)):
        expected = "torch.float32, shape () or (1,)" + (f", or ({heads},): one per KV head" if heads > 1 else "")
        raise ContractError(name, f"{scale.dtype} {tuple(scale.shape)}", expected)
    if scale.dim():
        check_dense_last(name, scale)


def _check_scale_cache(name: str, scales: torch.Tensor, num_kv_heads: int) -> None:
    check_tensor(name, scales)
    if scales.dtype != torch.float32 or scales.dim() != 3 or scales.shape[2] != num_kv_heads:
        expected = f"torch.float32, shape (num_blocks, block_size, {num_kv_heads})"
        raise ContractError(name, f"{scales.dtype} {tuple(scales.shape)}", expected)


def _is_factor(number: object, largest: float) -> bool:
    """True if a value is 0, or a number whose magnitude float32 holds normally and which is at most the largest."""
    if not isinstance(number, float | int) or isinstance(number, bool):
        return False
    return number == 0 or SMALLEST_NORMAL <= abs(number) <= largest
