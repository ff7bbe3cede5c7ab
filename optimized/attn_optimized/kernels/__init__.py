"""Triton kernels, one per file, and the device functions that they share. What launches them lives one level up."""
