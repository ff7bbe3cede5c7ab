"""Targets of SGLang's kernels."""
