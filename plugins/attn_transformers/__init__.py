"""transformers plugin: this project's reference and its Triton kernels as implementations of attention, and a judge for others.

After `register`, models of transformers run with `attn_implementation="attn_parity"`. `replacing` makes them run so where an
engine accepts no such name. `recording` judges the calls of another implementation. All three import transformers only when
they are called; `recording` needs the extra `fuzz`, too.

`arguments` translates a call of transformers into one of the contract: `masks` finds the requests and rules that a mask says,
`reading` proves them, and `biases` reads what is added to logits. `attention` makes the call. `padding` tells real tokens from
padding. `own_attention` is about models that transformers' interface does not reach. `paged_cache` keeps a model's keys and
values in pages of any layout.
"""

from attn_transformers.recording import recording
from attn_transformers.registration import IMPLEMENTATIONS, register, replacing

__all__ = ["IMPLEMENTATIONS", "recording", "register", "replacing"]
