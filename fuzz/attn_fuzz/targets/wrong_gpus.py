"""GPUs and launch parameters that are none: `plan_of` must refuse them, whatever the call is.

A wrong architecture is the name of one with a character more, less or other, where that is of another form than all names are.
The form is stated here once more.
"""

import dataclasses
import random
from collections.abc import Iterator
from typing import Any

import torch
from attn_contract import Batch, Layer
from attn_fuzz.targets.choices import choices_by
from attn_fuzz.targets.wrong_arguments import must_raise

DIGITS, HEX_DIGITS = set("0123456789"), set("0123456789abcdef")
CHARACTERS = "0123456789abcdefgmsx ABF.:+-_\n"
NO_NAMES = (None, 90, b"sm90", ["sm90"], "", "cuda")
NO_COUNTS = (None, 0, -1, 1.0, "8", True, 1 << 31)
GPU = {"architecture": "sm90", "compute_units": 8}


def check(q: torch.Tensor, layer: Layer, batch: Batch) -> None:
    """Check that a plan of a call is refused for a GPU that is none, and for parameters that no launch can have.

    Raises:
        AssertionError: a plan was made, or anything but a ContractError was raised.
    """
    import attn_optimized

    choose = choices_by((q.shape, batch.seq_lens))
    wrong = choose.choice(list(_wrong(choose)))
    must_raise(lambda: attn_optimized.plan_of(q, layer, batch, **{**GPU, **wrong}), f"a plan with {wrong}")
    name, value = choose.choice(list(_wrong_parameters(choose)))
    must_raise(lambda: _with_parameter(name, value), f"launch parameters with {name} {value!r}")


def _wrong(choose: random.Random) -> Iterator[dict[str, Any]]:
    yield {"architecture": choose.choice(NO_NAMES)}
    for name in [_misspelled(choose) for _ in range(8)]:
        if not is_name(name):
            yield {"architecture": name}
    yield {"compute_units": choose.choice(NO_COUNTS)}
    yield {"parameters": {"block_m": 64}}


def _misspelled(choose: random.Random) -> str:
    """The name of an architecture with one edit."""
    from attn_optimized.launch.table import architectures

    name = choose.choice(architectures())
    at = choose.randint(0, len(name))
    return name[:at] + choose.choice(("", choose.choice(CHARACTERS))) + name[at + choose.choice((0, 1)) :]


def is_name(text: str) -> bool:
    """Whether a text has the form of a name: sm and a number; or gfx, perhaps a 1, and three hexadecimal digits."""
    if text.startswith("sm"):
        return len(text) > 2 and DIGITS.issuperset(text[2:])
    if not text.startswith("gfx") or not HEX_DIGITS.issuperset(text[3:]):
        return False
    return len(text) == 6 or (len(text) == 7 and text[3] == "1")


def _wrong_parameters(choose: random.Random) -> Iterator[tuple[str, Any]]:
    """A field of launch parameters and a value that it cannot have."""
    for name in ("block_m", "block_n"):
        yield name, choose.choice((0, 8, 15, 17, 24, 48, 65, -16, 64.0, "64", None, True))
    yield "num_warps", choose.choice((0, 3, 5, 6, 12, -1, 4.0, None, True))
    yield "maxnreg", choose.choice((0, 15, -1, 128.0, True))
    yield "waves_per_eu", choose.choice((0, -1, 2.0, True))
    for name in ("num_stages", "keys_per_split", "programs_per_unit"):
        yield name, choose.choice((0, -1, 1.0, None, True))
    yield "uneven_waves", choose.choice((-1, 1.0, None, True))


def _with_parameter(name: str, value: Any) -> object:
    from attn_optimized.launch.table import entries

    return dataclasses.replace(entries(GPU["architecture"])[0].parameters, **{name: value})
