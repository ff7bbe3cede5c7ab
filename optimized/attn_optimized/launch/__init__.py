"""From what the host knows of a call to how its kernels are launched: workload, tiles, splits, plan, launches.

Everything here is a function of shapes, strides, dtypes and host values: no value of a tensor is read.
"""
