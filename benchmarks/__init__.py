"""Speed, side by side; nothing here is a test."""

from pathlib import Path

PAGES = Path("docs/generated")
"""Where these commands write their pages, relative to the repository's root."""
