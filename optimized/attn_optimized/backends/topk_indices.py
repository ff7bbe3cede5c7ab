"""The units that an indexer selected in a step, in a buffer that an engine makes once for all layers (vLLM's name for it)."""

import dataclasses

import torch
from attn_contract import Batch, ContractError

NAME = "topk_indices_buffer"


def selecting(step: Batch, buffer: torch.Tensor) -> Batch:
    """A step with the units of its rows, which are the first of the buffer [1 or HK, max tokens, k]."""
    try:
        return dataclasses.replace(step, selected=buffer)
    except ContractError as error:  # the rest of the step was accepted before
        raise ContractError(NAME, error.got, error.expected) from error
