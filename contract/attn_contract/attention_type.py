"""Where the keys of a layer come from."""

from enum import StrEnum


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
