"""What is installed."""

import importlib.metadata


def version(distribution: str) -> str | None:
    """Of an installed distribution; None if it is not."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None
