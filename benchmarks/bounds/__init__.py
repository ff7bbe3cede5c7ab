"""What AMD's published rates let the hot loops of kernels reach: arithmetic, and no measurement."""
