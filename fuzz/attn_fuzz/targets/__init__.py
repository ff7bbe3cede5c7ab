"""Targets of the fuzzer. To declare a kernel of your own: `from attn_fuzz.targets import Rounding, Support, Target`."""

from attn_fuzz.findings.aspects import needing
from attn_fuzz.findings.finding import Finding
from attn_fuzz.targets.engine import VLLM, Engine
from attn_fuzz.targets.support import LatentSizes, Support
from attn_fuzz.targets.target import Target
from attn_fuzz.verdict.rounding import Rounding

__all__ = ["VLLM", "Engine", "Finding", "LatentSizes", "Rounding", "Support", "Target", "needing"]
