"""Kernels compiled for AMD GPUs that are not here, and emulated: `attn_amdgcn` runs the code that Triton compiles."""

from attn_fuzz import extras

extras.require("cpu")
