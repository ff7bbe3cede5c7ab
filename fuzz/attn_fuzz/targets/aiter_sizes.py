"""Which sizes AITER's functions serve, stated once more: a call at an edge of them is served, and one beyond it is refused.

A layer of a model seldom has a size at an edge, and a size beyond it is drawn for nobody. So a case holds its function to one
more size. AITER's function does nothing meanwhile: whether the call is refused is all that is looked at.
"""

import functools
import random
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from attn_contract import AttentionType, Batch, KVCacheView, Layer, Layout, UnsupportedError
from attn_fuzz.targets.wrong_arguments import must_refuse

_MOST = 320


class Sizes(NamedTuple):
    """What a function serves. Sizes that are not stated are free.

    Args:
        layout: of its cache; None: it reads dense keys.
        head_sizes, block_sizes, group_sizes: head size, slots of a block, query heads of each KV head.
    """

    layout: Layout | None
    head_sizes: Sequence[int]
    block_sizes: Sequence[int] = ()
    group_sizes: Sequence[int] = ()

    @property
    def unit(self) -> int:
        """Head sizes and block sizes of the layout are multiples of this."""
        return 8 if self.layout is Layout.SHUFFLED else 1


SERVED = {
    "flash_attn_varlen": Sizes(None, range(8, 257, 8)),
    "unified_attention": Sizes(Layout.BLOCKS_FIRST_NHD, (16, 32, 64, 128, 256), (16, 32, 64, 128, 256)),
    "paged_attention_v1": Sizes(Layout.BLOCKS_FIRST_NHD, range(64, 257, 64), (16, 32)),
    "pa_fwd_asm": Sizes(Layout.SHUFFLED, (128,), (16,), range(1, 17)),
}
"""By the name of a function of the adapter. The keys of flash_attn_varlen_func are in no blocks."""


def check(function: str, aiter: Any, choose: random.Random) -> None:
    """Make a call with one size at an edge of what a function serves, beside it or twice as large, or with any other one.

    Args:
        function: its name in the adapter.
        aiter: an AITER whose functions do nothing.

    Raises:
        AssertionError: a size that is not served was not refused, or one that is served was.
    """
    served = SERVED[function]
    field = choose.choice([name for name in ("head_sizes", "block_sizes", "group_sizes") if getattr(served, name)])
    sizes = getattr(served, field)
    unit = 1 if field == "group_sizes" else served.unit
    one, most = choose.choice(sizes), max(sizes)
    beside = max(unit, one + choose.choice((-unit, unit)))
    size = choose.choice((one, beside, 2 * one, most, most + unit, unit * choose.randint(1, _MOST // unit)))
    call = _call(function, aiter, served, **{field: size})
    if size not in sizes:
        must_refuse(call, f"{function}: {field} {size}")
        return
    try:
        call()
    except UnsupportedError as error:  # of a case that may be refused, it would be taken for a refusal of the case
        raise AssertionError(f"{function}: {field} {size}: refused: {error}") from error


def _call(
    function: str, aiter: Any, served: Sizes, *, head_sizes: int = 0, block_sizes: int = 0, group_sizes: int = 2
) -> Callable[[], object]:
    """A call of one request with one key; a size of 0 is the first one that is served."""
    from attn_optimized import aiter_adapter

    head_size = head_sizes or next(iter(served.head_sizes))
    layer = Layer(
        num_heads=group_sizes,
        num_kv_heads=1,
        head_size=head_size,
        scale=head_size**-0.5,
        attn_type=AttentionType.ENCODER_ONLY if served.layout is None else AttentionType.DECODER,
        layout=served.layout,
    )
    q = torch.zeros(1, group_sizes, head_size, dtype=torch.float16)
    attend = functools.partial(getattr(aiter_adapter, function), aiter, q, layer=layer, out=torch.empty_like(q))
    starts = torch.tensor([0, 1], dtype=torch.int32)
    if served.layout is None:
        keys = {"k": q[:, :1], "v": q[:, :1], "query_start_loc": starts, "key_start_loc": starts}
        return functools.partial(attend, **keys, max_query_len=1, max_key_len=1, causal=True)
    heads = {"num_kv_heads": 1, "head_size": head_size, "itemsize": q.element_size()}
    view = KVCacheView.dense(
        served.layout, num_blocks=1, block_size=block_sizes or next(iter(served.block_sizes)), head_size_v=None, **heads
    )
    kv_cache = view.tensor(torch.zeros(2 * view.block_size * head_size, dtype=q.dtype))
    batch = Batch(
        query_start_loc=starts,
        seq_lens=starts[1:],
        max_query_len=1,
        max_seq_len=1,
        num_actual_tokens=1,
        causal=True,
        block_table=torch.zeros(1, 1, dtype=torch.int32),
    )
    return functools.partial(attend, kv_cache=kv_cache, batch=batch)
