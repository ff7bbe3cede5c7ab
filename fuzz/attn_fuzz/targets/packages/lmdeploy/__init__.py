"""Targets of LMDeploy's kernels."""
