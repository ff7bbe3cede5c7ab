"""Without a GPU Triton's interpreter runs the kernels: it must be on before a kernel is imported. Torch has one thread here."""

import os

import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

# tests have small tensors, and run beside others: threads that wait for each other took six times as long
torch.set_num_threads(1)
