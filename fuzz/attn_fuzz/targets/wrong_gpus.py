"""GPUs, launch parameters and grids that no plan can have: `plan_of` must refuse them, and nothing beside them.

A wrong architecture is the name of one with a character more, less or other, where that is of another form than all names are.
The form is stated here once more.
"""

import dataclasses
import functools
import random
from collections.abc import Iterator
from typing import Any

import torch
from attn_contract import AttentionType, Batch, Layer, UnsupportedError
from attn_fuzz.targets.choices import choices_by
from attn_fuzz.targets.planned import MOST_HEADS_OF_A_GROUP
from attn_fuzz.targets.wrong_arguments import call_naming, must_raise

DIGITS, HEX_DIGITS = set("0123456789"), set("0123456789abcdef")
CHARACTERS = "0123456789abcdefgmsx ABF.:+-_\n"
NO_NAMES = (None, 90, b"sm90", ["sm90"], "", "cuda")
NO_COUNTS = (None, 0, -1, 1.0, "8", True, 1 << 31)
GPU = {"architecture": "sm90", "compute_units": 8}
LEAST = {
    "block_m": 16,
    "block_n": 16,
    "num_warps": 1,
    "num_stages": 1,
    "maxnreg": 16,
    "waves_per_eu": 1,
    "keys_per_split": 1,
    "programs_per_unit": 1,
    "uneven_waves": 0,
}
MOST_PROGRAMS = ((1 << 31) - 1, 65_535, 65_535)
"""CUDA C++ Programming Guide, technical specifications per compute capability: a grid's dimensions at most."""


def check(q: torch.Tensor, layer: Layer, batch: Batch) -> None:
    """Check that a plan of a call is refused for a GPU that is none, and parameters that no launch can have.

    Raises:
        AssertionError: what is wrong was not refused, or the error names something else.
        ContractError: the least value that a parameter can have is refused.
    """
    import attn_optimized

    choose = choices_by((q.shape, batch.seq_lens))
    plan = functools.partial(attn_optimized.plan_of, q, layer, batch)
    name, value = choose.choice(list(_wrong(choose)))
    must_raise(functools.partial(call_naming, plan, GPU, name, lambda: value), f"a plan with {name} {value!r}")
    parameter, number = choose.choice(list(wrong_parameters(choose)))
    naming = functools.partial(call_naming, _with_parameters, {}, parameter, lambda: number)
    must_raise(naming, f"launch parameters with {parameter} {number!r}")
    least = choose.choice(list(LEAST))
    _with_parameters(**{least: LEAST[least]})
    _check_grid(choose)


def _check_grid(choose: random.Random) -> None:
    """Check that a plan has no more programs in a dimension than a GPU takes, however many requests or KV heads there are.

    A step of several tiles for a request is to be refused where there are more KV heads than that.
    """
    import attn_optimized

    many, few = choose.choice((1, MOST_PROGRAMS[1], MOST_PROGRAMS[1] + 1, 300_000)), choose.choice((1, 8))
    requests, kv_heads = choose.choice(((many, few), (few, min(many, MOST_PROGRAMS[1] + 1))))
    heads, queries = kv_heads * choose.choice((1, 1, 8, MOST_HEADS_OF_A_GROUP)), choose.choice((1, 1, 3))
    layer = Layer(num_heads=heads, num_kv_heads=kv_heads, head_size=64, scale=1.0, attn_type=AttentionType.ENCODER_ONLY)
    integers = torch.empty((requests + 1,), dtype=torch.int32, device="meta")
    batch = Batch(
        query_start_loc=integers,
        seq_lens=integers[1:],
        max_query_len=queries,
        max_seq_len=queries,
        num_actual_tokens=requests * queries,
        causal=False,
    )
    q = torch.empty((requests * queries, heads, 64), dtype=torch.float16, device="meta")
    try:
        grid = attn_optimized.plan_of(q, layer, batch, **GPU).launch_grid
    except UnsupportedError:
        assert kv_heads > MOST_PROGRAMS[1] and queries > 1, f"refused: {queries} queries of {kv_heads} KV heads"  # noqa: PT018
        return
    is_taken = all(size <= most for size, most in zip(grid, MOST_PROGRAMS, strict=True))
    assert is_taken, f"{requests} requests of {kv_heads} KV heads: a grid of {grid}"


def _wrong(choose: random.Random) -> Iterator[tuple[str, Any]]:
    """An argument of a plan, and a value that it cannot have."""
    yield "architecture", choose.choice(NO_NAMES)
    for name in [_misspelled(choose) for _ in range(8)]:
        if not is_name(name):
            yield "architecture", name
    yield "compute_units", choose.choice(NO_COUNTS)
    yield "compute_units", None  # an architecture alone says nothing of waves
    yield "parameters", {"block_m": 64}


def _misspelled(choose: random.Random) -> str:
    """The name of an architecture with one edit."""
    from attn_optimized.launch.table import architectures

    return edited(choose.choice(architectures()), choose)


def edited(name: str, choose: random.Random) -> str:
    """A name with one character more, less or other."""
    at = choose.randint(0, len(name))
    return name[:at] + choose.choice(("", choose.choice(CHARACTERS))) + name[at + choose.choice((0, 1)) :]


def is_name(text: str) -> bool:
    """Whether a text has the form of a name: sm and a number; or gfx, perhaps a 1, and three hexadecimal digits."""
    if text.startswith("sm"):
        return len(text) > 2 and DIGITS.issuperset(text[2:])
    if not text.startswith("gfx") or not HEX_DIGITS.issuperset(text[3:]):
        return False
    return len(text) == 6 or (len(text) == 7 and text[3] == "1")


def wrong_parameters(choose: random.Random) -> Iterator[tuple[str, Any]]:
    """A field of launch parameters and a value that it cannot have."""
    for name in ("block_m", "block_n"):
        yield name, choose.choice((0, 8, 15, 17, 24, 48, 65, -16, 64.0, "64", None, True))
    yield "num_warps", choose.choice((0, 3, 5, 6, 12, -1, 4.0, None, True))
    yield "maxnreg", choose.choice((0, 15, -1, 128.0, True))
    yield "waves_per_eu", choose.choice((0, -1, 2.0, True))
    for name in ("num_stages", "keys_per_split", "programs_per_unit"):
        yield name, choose.choice((0, -1, 1.0, None, True))
    yield "uneven_waves", choose.choice((-1, 1.0, None, True))


def _with_parameters(**changed: Any) -> object:
    from attn_optimized.launch.table import entries

    return dataclasses.replace(entries(GPU["architecture"])[0].parameters, **changed)
