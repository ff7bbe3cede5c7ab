"""The order in which an interpreted launch runs its programs.

A GPU promises no order. Triton's interpreter runs programs by their index, so a later program may repair what a wrong one did:
the wrong one writes its neighbour's row, and then the neighbour does. In another order the wrong row stays.
"""

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from attn_fuzz.cases.case import ProgramOrder


class _State:
    """How the launches of this process are run, and where the programs of the launch that runs are."""

    order: ProgramOrder = "in order"
    draws = random.Random(0)
    places: list[int] | None = None


_state = _State()


def use(order: ProgramOrder, seed: int) -> None:
    """Run launches in this order from now on, where `attn_fuzz.interpreted.interpreter` is installed.

    Args:
        order: "in order": by index, the last axis of the grid fastest. "shuffled": each launch by the next numbers of the seed.
        seed: with the same seed, the same launches run in the same orders.
    """
    _state.order, _state.draws = order, random.Random(seed)


@contextmanager
def programs(order: ProgramOrder, seed: int) -> Iterator[None]:
    """`use` for the launches inside."""
    before = _state.order, _state.draws
    use(order, seed)
    try:
        yield
    finally:
        _state.order, _state.draws = before


def install(builder: Any) -> None:
    """Hand out the programs of each launch in the chosen order, by Triton's InterpreterBuilder."""
    builder.set_grid_dim = _starting_launch(builder.set_grid_dim)
    builder.set_grid_idx = _choosing_program(builder.set_grid_idx)


def _starting_launch(set_grid_dim: Any) -> Callable[..., None]:
    def set_dim(builder: Any, *sizes: int) -> None:
        set_grid_dim(builder, *sizes)
        _state.places = None
        if _state.order != "in order":
            places = list(range(sizes[0] * sizes[1] * sizes[2]))
            if _state.order == "reversed":
                places.reverse()
            else:
                _state.draws.shuffle(places)
            _state.places = places

    return set_dim


def _choosing_program(set_grid_idx: Any) -> Callable[..., None]:
    def set_idx(builder: Any, x: int, y: int, z: int) -> None:
        if _state.places is not None:
            _, num_y, num_z = builder.grid_dim
            xy, z = divmod(_state.places[(x * num_y + y) * num_z + z], num_z)
            x, y = divmod(xy, num_y)
        set_grid_idx(builder, x, y, z)

    return set_idx
