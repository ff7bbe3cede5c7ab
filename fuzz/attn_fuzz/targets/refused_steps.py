"""Steps that a layer of a backend must refuse after a step that it has served.

A layer keeps what it found right in a step, and looks again only at what is new in a step. So a step that asks for more is
made of one that was served, and is handed to the layer that served it.
"""

import dataclasses
import random
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from attn_contract import AttentionType, Batch, Capabilities, Layer
from attn_fuzz.targets.declared import config_of_call
from attn_fuzz.targets.illegal import new_lse
from attn_fuzz.targets.wrong_arguments import must_raise, must_refuse


class AskedStep(NamedTuple):
    """What a layer is handed: its queries, the step, and where the results go."""

    q: torch.Tensor
    batch: Batch
    out: torch.Tensor
    lse: torch.Tensor | None


def check(
    serve: Callable[[AskedStep], object],
    declared: Capabilities,
    kv_cache: torch.Tensor | None,
    layer: Layer,
    served: AskedStep,
    choose: random.Random,
) -> None:
    """Hand a layer one step like a served one: of another dtype, or with one thing more that a step can ask for.

    Args:
        serve: builds the metadata of a step, and calls the layer that has served `served`.
        declared: what the backend declares. What it does not refuse is not asked for.
        kv_cache: as the layer's layout says.

    Raises:
        AssertionError: the layer did not refuse what its backend declares not to serve, or a query of another dtype.
    """
    # a step of its own has memory of its own: it must not write anything, and is not trusted to
    own = served._replace(out=torch.empty_like(served.out), lse=None if served.lse is None else torch.empty_like(served.lse))
    if choose.random() < 0.25:
        other = choose.choice([dtype for dtype in _DTYPES if dtype != served.q.dtype])
        out = own.out if layer.output_scale is not None else own.out.to(other)
        of_another_dtype = own._replace(q=own.q.to(other), out=out)
        must_raise(lambda: serve(of_another_dtype), f"queries of {other} to a layer of {served.q.dtype}")
        return
    what, asked = choose.choice([*_asking(own, layer)])
    config = config_of_call(asked.q, kv_cache, layer, asked.batch, asked.out, asked.lse)
    if declared.refusals(config):
        must_refuse(lambda: serve(asked), f"{what}, after a step that was served")


_DTYPES = (torch.float16, torch.bfloat16, torch.float32)


def _asking(step: AskedStep, layer: Layer) -> Iterator[tuple[str, AskedStep]]:
    """The step with one thing more or less, in words and as it is."""
    yield "the LSE", step._replace(lse=new_lse(step.q))
    if layer.attn_type is not AttentionType.DECODER:
        return
    batch, device = step.batch, step.q.device
    flags = torch.arange(batch.num_requests, device=device) % 2 == 0
    fields = {
        "non-causal attention": {"causal": False},
        "causal attention": {"causal": True},
        "a causal flag for each request": {"causal": flags},
        "ranges": {"bidirectional_ranges": torch.zeros((batch.num_requests, 1, 2), dtype=torch.int32, device=device)},
        "a bias": {"qq_bias": torch.zeros((batch.max_query_len, batch.max_query_len), device=device)},
    }
    for what, changed in fields.items():
        yield what, step._replace(batch=dataclasses.replace(batch, **changed))
