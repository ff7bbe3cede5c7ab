"""Targets of other people's kernels, from the sources of the release that each names. `tox -e others` runs them all."""
