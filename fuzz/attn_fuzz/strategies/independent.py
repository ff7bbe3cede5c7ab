"""Draws that depend only on a seed: Hypothesis without its other sources of randomness."""

import tempfile
from pathlib import Path

import hypothesis
import hypothesis.configuration
from hypothesis import settings
from hypothesis.internal.conjecture.providers import AVAILABLE_PROVIDERS, HypothesisProvider

# what Hypothesis keeps between runs would lie in the user's folder
hypothesis.configuration.set_hypothesis_home_dir(Path(tempfile.gettempdir(), "attn-parity-hypothesis"))
_PROVIDER = "attn-parity-independent"


class _Independent(HypothesisProvider):
    """Hypothesis's own source of numbers, without two of its habits.

    It follows each case that it draws with five variations of it, so that a few hundred would be a few dozen; where it believes
    the numbers to be somebody else's it does not. And it mixes in numbers that it reads in the source of all loaded modules, so
    that a seed would mean other cases after an edit or an import.
    """

    def _maybe_draw_constant(self, *args: object, **kwargs: object) -> None:
        return None


if not hasattr(HypothesisProvider, "_maybe_draw_constant"):
    raise ImportError(
        f"hypothesis {hypothesis.__version__}: HypothesisProvider has no _maybe_draw_constant, replaced here so that a "
        "seed means the same cases after an edit"
    )
AVAILABLE_PROVIDERS[_PROVIDER] = _Independent
# Hypothesis takes another profile where it finds a CI service: its settings would then be others, and so what it prints
INDEPENDENT = settings(
    settings.get_profile("default"), backend=_PROVIDER, database=None, deadline=None, report_multiple_bugs=False
)
