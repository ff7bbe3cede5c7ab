"""Targets of AITER's kernels: Triton, Gluon, HIP, CK and assembly."""
