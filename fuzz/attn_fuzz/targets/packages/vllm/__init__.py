"""Targets of vLLM's kernels."""
