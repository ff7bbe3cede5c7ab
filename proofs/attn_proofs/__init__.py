"""Theorems about the shipped source of the kernels, for all lengths: extracted from syntax trees, decided by an SMT solver."""
