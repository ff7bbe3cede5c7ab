"""TRITON_MLA where ranks share the keys of each request (decode context parallelism)."""

from attn_optimized.backends.triton_mla.declaration import TritonMlaBackend
from attn_optimized.backends.triton_mla.over_ranks.impl import TritonMlaOverRanksImpl
from attn_optimized.backends.triton_mla.over_ranks.metadata import RankMlaMetadata, RankMlaMetadataBuilder


class TritonMlaOverRanksBackend(TritonMlaBackend):
    impl = TritonMlaOverRanksImpl
    builder = RankMlaMetadataBuilder


__all__ = ["RankMlaMetadata", "RankMlaMetadataBuilder", "TritonMlaOverRanksBackend", "TritonMlaOverRanksImpl"]
