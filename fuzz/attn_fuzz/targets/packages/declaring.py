"""What targets of other packages' Triton kernels declare alike."""

import dataclasses
from collections.abc import Iterable
from types import ModuleType
from typing import Any

from attn_fuzz.targets.target import Support, Target
from attn_fuzz.verdict.rounding import Rounding

SHARES_A_QUERY = "Where the heads of a group do not divide the 16 rows of a tile, its last query is the first of the next tile."
"""`Target.races` of unified_attention, in AITER and in vLLM."""


def triton_target(*, support: Support, rounding: Rounding, **declared: Any) -> Target:
    """A target that refuses nothing: its engine sends what the kernel serves.

    Args:
        support: on any device.
        rounding: of a kernel whose dots a GPU adds to the sums so far. Triton's interpreter rounds each dot by itself.
        declared: other fields of Target.
    """
    return Target(
        support=lambda device: support,
        rounding=lambda device: dataclasses.replace(rounding, dot_is_chained=device != "cpu"),
        refuses=False,
        **declared,
    )


def choose_config(modules: Iterable[ModuleType], which: int) -> None:
    """Leave each autotuned kernel of these modules one of its configurations: the interpreter has no time to compare."""
    from triton.runtime.autotuner import Autotuner, Heuristics

    for each in (each for module in modules for each in vars(module).values()):
        kernel = each.fn if isinstance(each, Heuristics) else each
        if isinstance(kernel, Autotuner):
            kernel.configs = [kernel.configs[which]]
