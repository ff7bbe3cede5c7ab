"""The kernels that each backend calls, how this project has run them, and the findings in them.

No AMD GPU has run any of them. A target that emulates is fuzzed as NAME@ARCHITECTURE.
"""

from collections.abc import Sequence
from typing import NamedTuple

from attn_fuzz.findings.aiter.dense import MHA_VARLEN
from attn_fuzz.findings.aiter.fmha_assembly import FMHA_ASSEMBLY
from attn_fuzz.findings.aiter.hip import HIP_PA_V1
from attn_fuzz.findings.aiter.mla_assembly import MLA_ASSEMBLY, MLA_ASSEMBLY_OF_MAIN
from attn_fuzz.findings.aiter.pa_assembly import PA_ASSEMBLY
from attn_fuzz.findings.aiter.unified import UNIFIED_ATTENTION
from attn_fuzz.findings.finding import Finding


class Run(NamedTuple):
    """The kernels of one kind that a backend calls.

    Attributes:
        kernels: the kernels, in words.
        how: the way in which they were run.
        target: the target that runs them.
        findings: findings in the kernels, as this target runs them.
    """

    kernels: str
    how: str
    target: str
    findings: Sequence[Finding] = ()

    @property
    def known(self) -> str:
        """The names of the findings."""
        return ", ".join(finding.name for finding in self.findings) or "none"


# a copy of `attn_fuzz.targets.of_architecture.ARCHITECTURES`, because `select` must import nothing that needs an extra
EMULATED = "emulated as gfx90a, gfx942, gfx950, gfx1100, gfx1201, gfx1250"


def _own(backend: str, kernels: str = "triton") -> tuple[Run, Run]:
    """How this project's Triton kernels ran: in a backend, and by a target of the kernels alone, which names their modules."""
    words = "this project's kernels"
    return Run(words, "run on an H200, interpreted", backend), Run(words, EMULATED, kernels)


_UNIFIED = Run("AITER's Triton unified_attention", "run on an H200, interpreted", "aiter-unified-attention", UNIFIED_ATTENTION)
RUNS = {
    "ROCM_ATTN": _own("backend-rocm-attn"),
    "TRITON_ATTN": _own("backend-triton"),
    "TRITON_ATTN_DIFFKV": _own("backend-triton-diffkv"),
    "TRITON_MLA": _own("backend-triton-mla", "triton-latent"),
    "ROCM_AITER_MLA_SPARSE": (
        Run("this project's kernels", "emulated as gfx942, interpreted", "backend-rocm-aiter-mla-sparse"),
    ),
    "MINIMAX_M3_SPARSE": (Run("this project's kernels", "emulated as gfx942, interpreted", "backend-minimax-m3-sparse"),),
    "ROCM_AITER_UNIFIED_ATTN": (
        _UNIFIED,
        Run("this project's kernels, for all but decoders (see TRITON_ATTN)", "run on an H200, interpreted", "backend-triton"),
    ),
    "ROCM_AITER_FA": (
        Run(
            "AITER's flash_attn_varlen_func, assembly (bfloat16, heads of 128)",
            "emulated as gfx942, gfx950",
            "aiter-fmha-v3",
            FMHA_ASSEMBLY,
        ),
        Run(
            "AITER's flash_attn_varlen_func, CK (all else; run with heads of 64 and 128)",
            "emulated as gfx942",
            "aiter-ck-fmha",
        ),
        Run("AITER's HIP paged_attention_v1", "emulated as gfx942", "aiter-hip-pa-v1", HIP_PA_V1),
        _UNIFIED,
        Run(
            "AITER's pa_fwd_asm, assembly (vLLM's choice for a shuffled cache, which this backend refuses)",
            "emulated as gfx942, gfx950",
            "aiter-pa-assembly",
            PA_ASSEMBLY,
        ),
    ),
    "ROCM_AITER_MLA": (
        Run(
            "AITER's mla_decode_fwd, assembly (here the backend refuses every layer)",
            "emulated as gfx942, gfx950",
            "aiter-mla-assembly",
            (*MLA_ASSEMBLY, *MLA_ASSEMBLY_OF_MAIN),
        ),
    ),
    "ROCM_AITER_TRITON_MLA": (
        Run(
            "AITER's Triton flash_attn_varlen_func of mha (here the backend refuses every layer)",
            "interpreted",
            "aiter-mha-varlen",
            MHA_VARLEN,
        ),
    ),
}
"""The runs of each backend's kernel, by the backend's name."""
