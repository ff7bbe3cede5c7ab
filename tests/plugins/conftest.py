"""Without a driver vLLM takes no Triton, unless devices are hidden: then it imports its kernels, and they are interpreted."""

import importlib.util
import os

import pytest
import torch

if importlib.util.find_spec("vllm") and not torch.cuda.is_available():
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")


@pytest.fixture
def registered():
    """This project's attention is one of transformers', and nothing keeps gradients."""
    import attn_transformers

    attn_transformers.register()
    with torch.no_grad():
        yield
