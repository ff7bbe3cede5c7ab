"""The end of a call that may touch memory that is not there."""

import multiprocessing
import sys

import torch
from kernels import DEVICE


def ending(call) -> float:
    """0 if the call returns true, and 3 if not. On a CPU it runs in a process of its own, which a bad access ends.

    A GPU tells of a bad access by an exception, and CUDA survives no fork.
    """
    if DEVICE == "cuda":
        try:
            code = 0 if call() else 3
            torch.cuda.synchronize()
        except torch.AcceleratorError as error:
            print(str(error).splitlines()[0])
            code = 1
        return code
    process = multiprocessing.get_context("fork").Process(target=lambda: sys.exit(0 if call() else 3))
    process.start()
    process.join()
    if process.exitcode == 1:
        raise RuntimeError("the call raised")
    return float(process.exitcode or 0)
