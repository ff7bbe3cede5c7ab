"""Until editable installs are made anew: their entry points name this module."""

from attn_fuzz.targets.packages import AITER as AITER
from attn_fuzz.targets.packages import AITER_EMULATED as AITER_EMULATED
from attn_fuzz.targets.packages import LMDEPLOY as LMDEPLOY
from attn_fuzz.targets.packages import SGLANG as SGLANG
from attn_fuzz.targets.packages import VLLM as VLLM
