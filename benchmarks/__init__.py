"""Speed beside that of other projects, launch parameters, hashes of binaries, and how sharp the judge is."""

from pathlib import Path

PAGES = Path("docs/generated")
"""Where these commands write their pages, relative to the repository's root."""
