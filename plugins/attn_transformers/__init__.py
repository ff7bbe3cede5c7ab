"""transformers plugin: this project's reference and its Triton kernels as implementations of attention, and a judge for others.

After `register`, any model of transformers runs with `attn_implementation="attn_parity"`. `recording` judges the calls of another
implementation. Both import transformers only when they are called; `recording` needs the extra `fuzz`, too.

`arguments` translates a call of transformers into one of the contract, with `reading` for its mask and `biases` for what is added
to logits. `attention` makes the call. `own_attention` is about models without transformers' interface.
"""

from attn_transformers.recording import recording
from attn_transformers.registration import IMPLEMENTATIONS, register

__all__ = ["IMPLEMENTATIONS", "recording", "register"]
