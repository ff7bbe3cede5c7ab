"""vLLM's combine_topk_swa_indices: which rows of a gathered workspace a prefill of DeepSeek-V4 attends to.

There are three below models/. deepseek_v4/common/ops/cache_utils.py:752 is for CUDA (deepseek_v4/nvidia/flashmla.py:361), and
takes chosen entries as they are. deepseek_v4/amd/rocm.py:280 is for ROCm (:1693), and leaves out what is no entry, as does that
of V4.1, deepseek_v41/common/ops/cache_utils.py:917, for both (deepseek_v41/amd/rocm.py:1340). Layers with only a window have a
top_k of 0. Spans of images, in which queries see keys that come later, are not here.
"""

import functools
import inspect
import re
from types import ModuleType
from typing import Any

import torch
from attn_fuzz.errors import LimitError
from attn_fuzz.targets.packages.combined_lists import ListInputs, Prefill, lists_target
from attn_fuzz.targets.packages.declaring import Sources
from attn_fuzz.targets.packages.vllm import package as vllm_package

OPS = "common/ops/cache_utils"
COMMON, ROCM, V41 = (f"models/{file}" for file in (f"deepseek_v4/{OPS}", "deepseek_v4/amd/rocm", f"deepseek_v41/{OPS}"))


def _name_kernel(modules: list[ModuleType]) -> None:
    """A kernel of this name is looked up there to compile it."""
    vars(modules[0])["kernel"] = modules[0].CombineTopkSwaIndicesKernel.kernel


def _combine(step: Prefill, lists, lengths, *, sources: Sources) -> None:
    module, *_ = sources.load()
    text = inspect.getsource(module)
    if step.is_short and not re.search(r"swa_start = tl\.maximum\([^=]*gather_start", text):
        raise LimitError("lists of these sources begin at the window, gathered or not", "0.31, whose prefills may gather less")
    into = {} if ROCM in sources.names else {"out": (lists, lengths)}
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
    if "combined_indices.fill_(-1)" not in text and into:  # before 0.30: readers go by the length
        found[torch.arange(found.shape[1]) >= of_lists[:, None]] = -1
    lists[:], lengths[:] = found, of_lists


def _target(name: str, file: str, inputs: ListInputs) -> Any:
    if file == ROCM:
        sources = vllm_package.amid_anything(file)
    else:
        sources = vllm_package.amid_anything(file, *vllm_package.LAUNCHER, change=_name_kernel)
    return lists_target(
        name,
        functools.partial(_combine, sources=sources),
        inputs,
        description=f"combine_topk_swa_indices of vLLM ({file}.py)",
        **sources.fields(),
    )


VLLM_COMBINED_LISTS = _target("vllm-combined-lists", COMMON, ListInputs())
VLLM_COMBINED_LISTS_ROCM = _target("vllm-combined-lists-rocm", ROCM, ListInputs(holes=True, short=True))
VLLM_COMBINED_LISTS_V41 = _target("vllm-combined-lists-v41", V41, ListInputs(holes=True, short=True))
