"""Bugs that kernels are known to have: what each is, and NAME.json, a stored case that must fail because of it."""
