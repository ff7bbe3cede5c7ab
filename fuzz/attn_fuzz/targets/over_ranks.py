"""Until editable installs are made anew: their entry points name this module."""

from attn_fuzz.targets.ranks.attend_over_ranks import TRITON_OVER_RANKS as TRITON_OVER_RANKS
