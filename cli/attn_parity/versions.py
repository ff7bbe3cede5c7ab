"""The installed version of a package, read from its metadata: no package is imported."""

import importlib.metadata


def version(distribution: str) -> str | None:
    """The installed version of a distribution, or None if the distribution is not installed."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None
