"""Launch parameters of the attention kernel, searched for: `python -m benchmarks tune`."""
