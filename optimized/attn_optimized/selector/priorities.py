"""The backends of an architecture, most preferred first."""

import re
from collections.abc import Mapping
from fnmatch import fnmatchcase
from types import MappingProxyType
from typing import Literal, get_args

import torch
from attn_contract import AttentionConfig, ContractError
from attn_contract.arguments import shown

from attn_optimized.device import INTERPRETER, architecture_of

# vLLM's order (0.33), so that a name means the same there and here; an order by speed wants measurements, and no AMD GPU has
# run these backends yet. vLLM drops ROCM_ATTN for every layer of an encoder-decoder model; here it keeps those that it serves,
# and select_model sees to the memory that they share.
_CDNA = ("ROCM_ATTN", "ROCM_AITER_FA", "ROCM_AITER_UNIFIED_ATTN", "TRITON_ATTN")
# Likewise: where AITER is there, its Triton kernel goes first on RDNA, which has none of its assembly.
_RDNA = ("ROCM_AITER_UNIFIED_ATTN", "ROCM_ATTN", "ROCM_AITER_FA", "TRITON_ATTN")
# Backends for ROCm are no first choice elsewhere, but may be asked for by name, mostly for debugging.
_ELSEWHERE = ("TRITON_ATTN", "ROCM_ATTN", "ROCM_AITER_UNIFIED_ATTN", "ROCM_AITER_FA")

PRIORITIES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "gfx90a": _CDNA,
        "gfx942": _CDNA,
        "gfx950": _CDNA,
        "gfx11??": _RDNA,
        "gfx12??": _RDNA,
        "sm*": _ELSEWHERE,
        INTERPRETER: _ELSEWHERE,
    }
)
"""Backends of plain attention by architecture, most preferred first. Every row names all of them, so that a skip always has its
reasons."""

# vLLM's order again; where it has no AITER, and on NVIDIA's GPUs, TRITON_MLA is the only one that this project has
_MLA = ("ROCM_AITER_MLA", "TRITON_MLA", "ROCM_AITER_TRITON_MLA")
_MLA_ELSEWHERE = ("TRITON_MLA", "ROCM_AITER_MLA", "ROCM_AITER_TRITON_MLA")

CacheKind = Literal["one width", "two widths", "latent", "selection", "latent selection"]
"""The property that decides which backends are tried. `one width`: K and V are as wide, or the layer has no cache."""
_ROWS: Mapping[CacheKind, Mapping[str, tuple[str, ...]]] = {
    "one width": PRIORITIES,
    # vLLM's model of MiMo-V2 chooses, and no order of a platform: FLASH_ATTN_DIFFKV where FlashAttention 3 or 4 runs, which
    # this project does not have, and this one everywhere else
    "two widths": {"*": ("TRITON_ATTN_DIFFKV",)},
    "latent": {"gfx942": _MLA, "gfx950": _MLA, "*": _MLA_ELSEWHERE},
    # vLLM has other backends for these on NVIDIA's GPUs, and its model of MiniMax-M3 always chooses by itself
    "selection": {"*": ("MINIMAX_M3_SPARSE",)},
    "latent selection": {"*": ("ROCM_AITER_MLA_SPARSE",)},
}


def cache_kind(config: AttentionConfig) -> CacheKind:
    """The kind of a layer's cache."""
    if config.asks("selection_unit"):
        return "latent selection" if config.has_latent_cache else "selection"
    if config.has_latent_cache:
        return "latent"
    return "two widths" if config.has_two_widths else "one width"


def this_architecture() -> str:
    """The architecture that runs Triton kernels in this process, or "interpreter" where there is no GPU."""
    return architecture_of(torch.device("cuda"), torch.float32) if torch.cuda.is_available() else INTERPRETER


def parse_architecture(name: str) -> str:
    """An architecture as PRIORITIES knows it, such as "gfx942" of HIP's `gcnArchName` "gfx942:sramecc+:xnack-".

    Raises:
        ContractError: there are no priorities for it.
    """
    parsed = re.fullmatch(r"(gfx[0-9a-f]+|sm[0-9]+|interpreter)(:\w+[+-])*", name) if isinstance(name, str) else None
    if parsed is None or not any(fnmatchcase(parsed[1], pattern) for pattern in PRIORITIES):
        raise ContractError("architecture", shown(name), f"one of {', '.join(PRIORITIES)}")
    return parsed[1]


def priorities(architecture: str, kind: CacheKind = "one width") -> tuple[str, ...]:
    """The backends in the order in which they are tried on an architecture, for layers with a kind of cache.

    Raises:
        ContractError: as `parse_architecture` does, or there is no such kind.
    """
    architecture = parse_architecture(architecture)
    if kind not in get_args(CacheKind):
        raise ContractError("kind", shown(kind), f"one of {', '.join(get_args(CacheKind))}")
    return next(backends for pattern, backends in _ROWS[kind].items() if fnmatchcase(architecture, pattern))
