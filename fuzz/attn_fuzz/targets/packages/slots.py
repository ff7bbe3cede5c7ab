"""The slots of tokens in a paged cache, as kernels take them that read no block table."""

import torch
from attn_contract import Batch


def slots_of_tokens(tokens: torch.Tensor, tables: torch.Tensor, block_size: int) -> torch.Tensor:
    """The slots of tokens [..., rows, W], whose rows have block tables [rows, max_blocks]. -1 stays -1."""
    blocks = tables.expand(*tokens.shape[:-1], -1).gather(-1, (tokens.clamp(min=0) // block_size).long())
    return torch.where(tokens < 0, -1, blocks * block_size + tokens % block_size)


def slots_of_requests(
    batch: Batch, end: torch.Tensor, block_size: int, first: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """kv_indptr [R + 1] int32 and kv_indices int64: the slots of each request's keys [first, end). `first`: None is 0."""
    assert batch.block_table is not None
    first = torch.zeros_like(end) if first is None else first
    tokens = [torch.arange(*ends, device=end.device) for ends in zip(first.tolist(), end.tolist(), strict=True)]
    found = [slots_of_tokens(each, table, block_size) for each, table in zip(tokens, batch.block_table, strict=True)]
    return torch.nn.functional.pad((end - first).cumsum(0), (1, 0)).to(torch.int32), torch.cat(found)
