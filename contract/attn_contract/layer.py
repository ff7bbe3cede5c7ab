"""What is fixed for one attention layer of a model."""

import reprlib
from dataclasses import dataclass
from enum import StrEnum

import torch

from attn_contract.arguments import check_dense_last, check_int, check_tensor, check_type
from attn_contract.errors import ContractError
from attn_contract.layouts import Layout

FLOAT_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
UNLIMITED = -1


class AttentionType(StrEnum):
    """Where the keys of a layer come from. The values are vLLM's."""

    DECODER = "decoder"
    """Context and this step's tokens, from the KV cache, which this step's tokens are written to first."""
    ENCODER = "encoder"
    """This request's own tokens, dense and bidirectional, in the encoder of an encoder-decoder model."""
    ENCODER_ONLY = "encoder_only"
    """The same in a model that has no decoder."""
    ENCODER_DECODER = "encoder_decoder"
    """Cross-attention: all the encoder's tokens, from the KV cache, whatever the number of query tokens."""

    @property
    def reads_cache(self) -> bool:
        return self in (AttentionType.DECODER, AttentionType.ENCODER_DECODER)


@dataclass(frozen=True, eq=False, kw_only=True)
class Layer:
    """One attention layer.

    Args:
        num_heads: query heads H.
        num_kv_heads: KV heads HK; H is a multiple of HK and query head h reads KV head `h // (H // HK)`.
        head_size: D.
        scale: factor of q.k, usually `head_size ** -0.5`; any number that float32 holds.
        attn_type: where the keys come from.
        window: (left, right), inclusive: a query at position p sees keys in [p - left, p + right]; -1 is unlimited, 0 is
            a real window (only itself). A model's `sliding_window=W` counts the token itself and is (W - 1, W - 1).
            DECODER, ENCODER and ENCODER_ONLY only: query and key positions of cross-attention are unrelated.
        sinks: [H], float32, float16 or bfloat16: one logit per query head that joins each row's softmax denominator,
            without a value, not scaled (GPT-OSS). -inf is no sink.
        layout: how the KV cache is laid out; None exactly for the types that have no cache.

    Raises:
        ContractError: a field has another type, is out of range or contradicts another one.
    """

    num_heads: int
    num_kv_heads: int
    head_size: int
    scale: float
    attn_type: AttentionType = AttentionType.DECODER
    window: tuple[int, int] = (UNLIMITED, UNLIMITED)
    sinks: torch.Tensor | None = None
    layout: Layout | None = None

    def __post_init__(self) -> None:
        for name in ("num_heads", "num_kv_heads", "head_size"):
            check_int(name, getattr(self, name), minimum=1)
        if self.num_heads % self.num_kv_heads:
            raise ContractError(
                "num_heads", self.num_heads, f"a multiple of num_kv_heads ({self.num_kv_heads}), so that heads form groups"
            )
        if not _fits_float32(self.scale):
            raise ContractError("scale", reprlib.repr(self.scale), "a finite number of float32, in which every kernel scales")
        object.__setattr__(self, "scale", float(self.scale))
        check_type("attn_type", self.attn_type, AttentionType, f"an AttentionType: {', '.join(AttentionType)}")
        self._check_window()
        self._check_sinks()
        if self.layout is not None:
            check_type("layout", self.layout, Layout, f"None or a Layout: {', '.join(Layout)}")
        if self.attn_type.reads_cache != (self.layout is not None):
            expected = "a Layout: its keys come from the KV cache" if self.attn_type.reads_cache else "None: it has no KV cache"
            raise ContractError("layout", f"{self.layout} with attn_type={self.attn_type}", expected)

    def _check_window(self) -> None:
        if not isinstance(self.window, tuple) or len(self.window) != 2:
            raise ContractError("window", reprlib.repr(self.window), "a tuple (left, right)")
        for side, distance in enumerate(self.window):
            check_int(f"window[{side}]", distance, minimum=UNLIMITED)
        if self.attn_type is AttentionType.ENCODER_DECODER and self.window != (UNLIMITED, UNLIMITED):
            raise ContractError(
                "window", self.window, "(-1, -1) for ENCODER_DECODER: query and key positions belong to different sequences"
            )

    def _check_sinks(self) -> None:
        if self.sinks is None:
            return
        check_tensor("sinks", self.sinks)
        if tuple(self.sinks.shape) != (self.num_heads,):
            raise ContractError("sinks", f"shape {tuple(self.sinks.shape)}", f"shape ({self.num_heads},): one per query head")
        if self.sinks.dtype not in FLOAT_DTYPES:
            raise ContractError("sinks", self.sinks.dtype, "float32, float16 or bfloat16")
        check_dense_last("sinks", self.sinks)


def _fits_float32(number: object) -> bool:
    if not isinstance(number, float | int) or isinstance(number, bool):
        return False
    return abs(number) <= torch.finfo(torch.float32).max
