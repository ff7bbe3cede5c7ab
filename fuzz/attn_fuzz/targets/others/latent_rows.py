"""How kernels that decode one row at a time are called: each row of q as a request of its own, with the keys that it sees."""

from typing import NamedTuple

import torch
from attn_contract import Batch
from attn_fuzz.cases.case import Case


class DecodedRows(NamedTuple):
    """Each is [rows], of the rows that requests own."""

    request: torch.Tensor
    seq_lens: torch.Tensor
    """int32; 0 of a row that sees no key"""


def decoded_rows(batch: Batch) -> DecodedRows:
    """The request of each row, and how many of its first keys the row sees: causal or not, and nothing else."""
    starts, device = batch.query_start_loc.long(), batch.query_start_loc.device
    request = torch.repeat_interleave(torch.arange(batch.num_requests, device=device), starts.diff())
    behind = starts[1:][request] - 1 - torch.arange(len(request), device=device)
    causal = batch.causal[request] if isinstance(batch.causal, torch.Tensor) else torch.tensor(batch.causal, device=device)
    seq_lens = torch.where(causal, (batch.seq_lens[request] - behind).clamp(min=0), batch.seq_lens[request])
    return DecodedRows(request, seq_lens.int())


def has_row_without_keys(case: Case) -> str | None:
    """Why a case is left out: such a row divides by 0. It is padding, or a rank's part that the merge selects away."""
    empty = any(request.query_len > request.seq_len and (request.causal or not request.seq_len) for request in case.requests)
    return "a row without keys" if empty else None
