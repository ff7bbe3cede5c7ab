"""Every kernel beside its peers, in one run: `python -m benchmarks speed`."""
