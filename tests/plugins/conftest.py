"""Without a driver vLLM takes no Triton, unless devices are hidden: then it imports its kernels, and they are interpreted."""

import importlib.util
import os

import torch

if importlib.util.find_spec("vllm") and not torch.cuda.is_available():
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
