"""TRITON_MLA: latent attention (MLA) on this project's kernels, in the two forms of `attn_reference.latent`.

A step is split by the numbers of query tokens, which the host knows:

    decode     few query tokens, or a step that is not causal: absorbed, on the paged kernel over the latent cache. Rows of a
               draft have their own lengths
    prefill    expanded: dense attention to this step's own tokens, which the cache write has not rounded; and attention to the
               context in chunks, gathered from the cache and expanded, merged by their LSEs

vLLM's layer of latent attention applies W_UK to the queries of decodes, and W_UV to their outputs. So does the engine here.
"""

from attn_optimized.backends.triton_mla.declaration import TritonMlaBackend
from attn_optimized.backends.triton_mla.impl import TritonMlaImpl
from attn_optimized.backends.triton_mla.metadata import MlaMetadata, MlaMetadataBuilder

__all__ = ["MlaMetadata", "MlaMetadataBuilder", "TritonMlaBackend", "TritonMlaImpl"]
