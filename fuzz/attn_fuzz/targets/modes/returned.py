"""NAME@returned: calls without `out`, of which the tensor that the call returns is judged."""

import dataclasses
from collections.abc import Callable

import torch
from attn_fuzz.targets.support import Support
from attn_fuzz.targets.target import Mode, Target


def mode(attend: Callable[..., torch.Tensor]) -> Mode:
    """The mode of a target, for `Target.modes`.

    Args:
        attend: an AttentionFunction that returns the output where `out` is None.
    """

    def returned(target: Target) -> Target:
        def attention(q, k, v, kv_cache, layer, batch, *, out, lse) -> None:
            made = attend(q, k, v, kv_cache, layer, batch, out=None, lse=lse)
            num_rows = int(batch.query_start_loc[-1])
            out[:num_rows] = made[:num_rows].reshape(out[:num_rows].shape)

        def support(device: str) -> Support:
            support = target.support(device)
            rules = tuple(name for name in support.rules if name != "q_scale")  # a float8 q says no dtype of the output
            return dataclasses.replace(support, rules=rules, output_dtypes=())

        return dataclasses.replace(target, attention=attention, support=support, siblings=(), checks_arguments=False)

    return returned
