"""Without a GPU Triton's interpreter runs the kernels: it must be on before a kernel is imported. Torch has one thread here."""

import importlib.util
import os

import pytest
import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")
    if importlib.util.find_spec("msgspec"):  # of the extra `fuzz`
        from attn_fuzz.interpreted import interpreter

        # as in the fuzzer's processes; and kernels take a third of the time
        interpreter.install()

# tests have small tensors, and run beside others: threads that wait for each other took six times as long
torch.set_num_threads(1)


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("attn-parity's own tests")
    group.addoption("--malformed", type=int, default=40, metavar="N", help="malformed files that commands are given (40)")
    group.addoption("--kills", type=int, default=2, metavar="N", help="processes of a run that are killed (2)")
