"""The kernels that are put side by side: ours, PyTorch's, and those of other projects."""
