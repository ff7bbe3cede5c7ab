"""`python -m tests.plugins.vllm_worker spawn`: a front end and a worker of vLLM, whose Triton kernel computes wrongly.

Both load vLLM's plugins as vLLM does. The front end prints the worker's process id. The worker serves until it is killed.
"""

import itertools
import multiprocessing
import sys

import pytest
from vllm.plugins import load_general_plugins


def work() -> None:
    load_general_plugins()
    from vllm.v1.attention.backends import triton_attn

    from tests.plugins import vllm_kernels
    from tests.plugins.vllm_model import served

    with pytest.MonkeyPatch.context() as patches:
        vllm_kernels.interpret(patches)
        patches.setattr(triton_attn, "unified_attention", vllm_kernels.with_wider_window(triton_attn.unified_attention))
        for _ in itertools.count():
            served("TRITON_ATTN", per_layer_sliding_window=4)


if __name__ == "__main__":
    load_general_plugins()
    worker = multiprocessing.get_context(sys.argv[1]).Process(target=work)
    worker.start()
    print(worker.pid, flush=True)
    worker.join()
