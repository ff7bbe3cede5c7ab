"""The types of attention."""

from enum import StrEnum


class AttentionType(StrEnum):
    """The source of a layer's keys. The values are vLLM's."""

    DECODER = "decoder"
    """Keys are the context and this step's tokens, read from the KV cache, to which this step's tokens are written first."""
    ENCODER = "encoder"
    """Keys are the request's own tokens, dense and bidirectional, in the encoder of an encoder-decoder model."""
    ENCODER_ONLY = "encoder_only"
    """Keys are the request's own tokens, dense and bidirectional, in a model that has no decoder."""
    ENCODER_DECODER = "encoder_decoder"
    """Cross-attention: keys are all the encoder's tokens, read from the KV cache, for any number of query tokens."""

    @property
    def reads_cache(self) -> bool:
        """True if the keys come from the KV cache."""
        return self in (AttentionType.DECODER, AttentionType.ENCODER_DECODER)
