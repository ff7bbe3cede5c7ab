"""Bugs that the fuzzer has found in AITER's attention kernels, by family: Triton, Gluon, HIP and assembly."""
