"""Launches of a call's kernels, made of what the host knows: workload, tiles, splits, plan, launches.

Everything here is a function of shapes, strides, dtypes and host values: no value of a tensor is read.
"""
