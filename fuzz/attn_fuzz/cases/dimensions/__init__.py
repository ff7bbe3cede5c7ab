"""The one table of dimensions in which calls differ.

Everything that depends on the whole input is derived from it: features (`attn_fuzz.cases.features`), aspects of
failures (`attn_fuzz.findings.aspects`), and what a target's support lets a run draw (`attn_fuzz.report.drawn`). The type of a
field of Case says what shrinking lowers (`attn_fuzz.run.shrink`). A field of a case that no dimension names fails a test.
"""

from typing import Final

from attn_fuzz.cases.case import Case
from attn_fuzz.cases.dimensions.batch import ATTENTION, MULTI_TOKEN_DECODE, REQUESTS
from attn_fuzz.cases.dimensions.cache import CACHE
from attn_fuzz.cases.dimensions.call import CALL, SIZES, WRITE
from attn_fuzz.cases.dimensions.dimension import Dimension
from attn_fuzz.cases.dimensions.rules import RULE_DIMENSIONS, value_on

__all__ = [
    "DIMENSIONS",
    "MULTI_TOKEN_DECODE",
    "Dimension",
    "fields_of_layers",
    "value_on",
]

DIMENSIONS: Final = (*ATTENTION, *REQUESTS, *RULE_DIMENSIONS, *SIZES, *CACHE, *WRITE, *CALL)
"""All dimensions. Features of a case have this order."""


def fields_of_layers() -> tuple[str, ...]:
    """The fields of Case that say what a layer is, of any attention type."""
    of_layers = [one for one in DIMENSIONS if one.rule or one.of_layers]
    names = {name for dimension in of_layers for name in dimension.fields} - {"attn_type"}
    return tuple(name for name in Case.__struct_fields__ if name in names)
