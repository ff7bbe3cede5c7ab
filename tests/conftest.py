"""Without a GPU Triton's interpreter runs the kernels: it must be on before a kernel is imported. Torch has one thread here.

Hypothesis draws the same in each run: a change is to break a test, and not the day. `attn-parity fuzz` is what draws anew.
"""

import importlib.util
import os

import pytest
import torch

_HAS_FUZZER = importlib.util.find_spec("msgspec") is not None  # of the extra `fuzz`
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")
    if _HAS_FUZZER:
        from attn_fuzz.interpreted import interpreter

        # as in the fuzzer's processes; and kernels take a third of the time
        interpreter.install()

if _HAS_FUZZER:
    from attn_fuzz.strategies.independent import INDEPENDENT
    from hypothesis import settings

    settings.register_profile("alike in each run", INDEPENDENT, derandomize=True)
    settings.load_profile("alike in each run")

# tests have small tensors, and run beside others: threads that wait for each other took six times as long
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("attn-parity's own tests")
    group.addoption("--malformed", type=_seeds, default=range(20), metavar="A:B", help="seeds of malformed files (0:20)")
    group.addoption("--kills", type=_seeds, default=range(20), metavar="A:B", help="numbers of kills of a run's process (0:20)")


def _seeds(text: str) -> range:
    first, last = text.split(":")
    return range(int(first), int(last))
