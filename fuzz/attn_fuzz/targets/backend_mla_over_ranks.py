"""Until editable installs are made anew: their entry points name this module."""

from attn_fuzz.targets.ranks.backend_mla_over_ranks import BACKEND_TRITON_MLA_OVER_RANKS as BACKEND_TRITON_MLA_OVER_RANKS
