"""Scale bytes at the ends of their range, in a cache whose scales are ue8m0 and that another writer may have filled.

The contract's writer writes no byte below 27. But a byte is any power of two from 2**-127, a subnormal number of float32, to
2**127, by which a group of zeros is still 0.
"""

from typing import NamedTuple

import msgspec
import torch
from attn_fuzz.cases import allocations
from attn_fuzz.cases.case import Cache, Case, Values
from attn_fuzz.cases.contents import MEANING_VALUES
from attn_fuzz.cases.poison import DTYPES

MIN_BYTE, MAX_BYTE = 0, 254
MIN_CODE = 2.0
"""The least magnitude of an element whose product with the least scale is a normal number of bfloat16."""


class Edge(NamedTuple):
    """A group of dims, and the byte that its scale has in slots that the step does not write.

    Slots that the step writes hold zeros in this group, so nothing of another size is added to products of such a small scale.
    """

    group: int
    dims: slice
    byte: int


def edge_of(case: Case) -> Edge | None:
    """The edge of a case, in half of the cases with such a cache; else None."""
    form, choice = case.latent_format, case.values.choice("scale bytes", 4)
    if form is None or form.scale_dtype != torch.float8_e8m0fnu or case.values.kind in (*MEANING_VALUES, "captured"):
        return None
    if choice < 2:
        return None
    groups = form.quantized_size(case.head_size, case.head_size_v) // form.scale_dims
    group = case.values.choice("group with such a byte", groups)
    return Edge(group, slice(group * form.scale_dims, (group + 1) * form.scale_dims), (MIN_BYTE, MAX_BYTE)[choice - 2])


def without_least(values: Values) -> Values:
    """The values, perhaps with another seed, so that no byte is MIN_BYTE."""
    while values.choice("scale bytes", 4) == 2:
        values = msgspec.structs.replace(values, seed=values.seed - 1)  # 0 is the simplest form
    return values


def write(case: Case, cache: Cache, edge: Edge, raw: torch.Tensor, slots: torch.Tensor) -> None:
    """Give a group of these slots [n] the byte. Beside the largest byte all elements become 0, beside the least small ones."""
    form, memory = case.latent_format, raw.view(torch.uint8)
    assert form is not None
    rows = allocations.rows_of_latent(allocations.cache_view(case, cache), raw.device).flatten(0, 1)[slots]
    quantized, size = form.quantized_size(case.head_size, case.head_size_v), rows.shape[1]
    first_scale = size - form.scales_size(case.head_size, case.head_size_v) if form.scales_apart else quantized
    codes = memory[rows[:, edge.dims]]
    numbers = codes.view(DTYPES[cache.dtype or case.dtype]).float()
    is_kept = (numbers.abs() >= MIN_CODE) & (edge.byte == MIN_BYTE)
    memory[rows[:, edge.dims]] = torch.where(is_kept, codes, 0)
    memory[rows[:, first_scale + edge.group]] = edge.byte
