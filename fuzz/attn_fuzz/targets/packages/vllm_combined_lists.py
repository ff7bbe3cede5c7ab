"""vLLM's combine_topk_swa_indices: which rows of a gathered workspace a prefill of DeepSeek-V4 attends to.

There are three below models/. deepseek_v4/common/ops/cache_utils.py:752 is for CUDA (deepseek_v4/nvidia/flashmla.py:361), and
takes chosen entries as they are. deepseek_v4/amd/rocm.py:280 is for ROCm (:1693), and leaves out what is no entry, as does that
of V4.1, deepseek_v41/common/ops/cache_utils.py:917, for both (deepseek_v41/amd/rocm.py:1340). Layers of a window alone have a
top_k of 0. Spans of images, in which queries see keys that come later, are not here.
"""

import ast
import functools
from types import ModuleType
from typing import Any

from attn_fuzz import foreign
from attn_fuzz.targets.packages import vllm_package
from attn_fuzz.targets.packages.combined_lists import Prefill, Terms, lists_target

OPS = "common/ops/cache_utils"
COMMON, ROCM, V41 = (f"models/{file}.py" for file in (f"deepseek_v4/{OPS}", "deepseek_v4/amd/rocm", f"deepseek_v41/{OPS}"))
LAUNCHER = ("model_executor/warmup/jit_warmup.py", "model_executor/warmup/jit_warmup_triton_helper.py")


class _Anything:
    """What ROCm's file imports for its classes and metadata, and does not need for lists."""

    def __init__(self, *arguments: object, **options: object) -> None:
        pass

    def __call__(self, *arguments: object, **options: object) -> "_Anything":
        return self


@functools.cache
def _load(file: str) -> list[ModuleType]:
    stubs = vllm_package.stubs(is_rocm=file != COMMON)
    stubs["vllm.triton_utils"] |= {"HAS_TRITON": True}
    stubs["vllm.utils.math_utils"] |= {"next_power_of_2": _power_of_two, "cdiv": lambda a, b: -(-a // b)}
    stubs["vllm.transformers_utils.deepseek_v4_utils"] = {"get_compress_ratios": None}
    stubs["vllm.utils.import_utils"] = {"has_cutedsl": lambda: False}
    if file == ROCM:
        return foreign.load("vllm", (file,), stubs=_of_classes(file) | {"vllm.triton_utils": stubs["vllm.triton_utils"]})
    module, *_ = foreign.load("vllm", (file, *LAUNCHER), stubs=stubs)
    vars(module)["kernel"] = module.CombineTopkSwaIndicesKernel.kernel  # where a kernel of this name is looked up to compile it
    return [module]


def _of_classes(file: str) -> dict[str, dict[str, Any]]:
    tree = ast.parse((foreign.sources("vllm") / file).read_text(encoding="utf-8"))
    modules = {node.module for node in tree.body if isinstance(node, ast.ImportFrom) and node.module}
    anything = {"__getattr__": lambda name: type(name, (_Anything,), {})}
    return {name: anything for name in modules if name.startswith("vllm")}


def _power_of_two(number: int) -> int:
    return 1 << max(number - 1, 0).bit_length()


def _combine(step: Prefill, lists, lengths, *, file: str) -> None:
    [module] = _load(file)
    into = {} if file == ROCM else {"out": (lists, lengths)}
    found, of_lists = module.combine_topk_swa_indices(
        step.chosen,
        step.query_start_loc,
        step.seq_lens,
        step.gather_lens,
        step.window,
        step.ratio,
        step.top_k,
        step.rows_of_a_request,
        step.entries_of_a_request,
        **into,
    )
    lists[:], lengths[:] = found, of_lists


def _target(name: str, file: str, terms: Terms) -> Any:
    return lists_target(
        name,
        functools.partial(_combine, file=file),
        terms,
        description=f"combine_topk_swa_indices of vLLM 0.33.0 ({file})",
        unavailable=vllm_package.missing_files(file),
        modules=functools.partial(_load, file),
    )


VLLM_COMBINED_LISTS = _target("vllm-combined-lists", COMMON, Terms())
VLLM_COMBINED_LISTS_ROCM = _target("vllm-combined-lists-rocm", ROCM, Terms(holes=True, short=True))
VLLM_COMBINED_LISTS_V41 = _target("vllm-combined-lists-v41", V41, Terms(holes=True, short=True))
