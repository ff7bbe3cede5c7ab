"""The order in which an interpreted launch runs its programs, or groups of programs that run together.

A GPU promises no order. Triton's interpreter runs programs by their index, so a later program may repair a wrong one's work:
the wrong one writes its neighbour's row, and then the neighbour writes it. In another order the wrong row stays.
"""

import random
from collections.abc import Iterator
from contextlib import contextmanager

from attn_fuzz.cases.case import ProgramOrder


class _State:
    """The order in which launches of this process run their programs."""

    order: ProgramOrder = "in order"
    rng = random.Random(0)


state = _State()


def use(order: ProgramOrder, seed: int) -> None:
    """Run launches in this order from now on, where `attn_fuzz.interpreted.interpreter` is installed.

    Args:
        order: "in order": by index, the last axis of the grid fastest. "shuffled": each launch by the next numbers of the seed.
        seed: with the same seed, the same launches run in the same orders.
    """
    state.order, state.rng = order, random.Random(seed)


@contextmanager
def programs(order: ProgramOrder, seed: int) -> Iterator[None]:
    """`use` for the launches inside."""
    before = state.order, state.rng
    use(order, seed)
    try:
        yield
    finally:
        state.order, state.rng = before


def order(programs: int) -> list[int]:
    """The places of the programs of the next launch, in the order in which they run."""
    places = list(range(programs))
    if state.order == "reversed":
        places.reverse()
    elif state.order == "shuffled":
        state.rng.shuffle(places)
    return places
