"""The one table of dimensions in which calls differ.

Everything that depends on the whole input is derived from it: features and pairs (`attn_fuzz.cases.features`), regions of the
contract (`attn_lab.matrix.regions`), aspects of failures (`attn_fuzz.findings.aspects`), the settings of the scopes of
`attn-parity exhaust` (`attn_fuzz.exhaustive.scope`), and what a target's support lets a run draw (`attn_fuzz.report.drawn`).
The type of a field of Case says what shrinking lowers (`attn_fuzz.run.shrink`). A field of a case, or of the contract, that no
dimension names fails a test.
"""

from typing import Final

from attn_fuzz.cases.case import Case
from attn_fuzz.cases.dimensions.batch import ATTENTION, MULTI_TOKEN_DECODE, REQUESTS
from attn_fuzz.cases.dimensions.cache import CACHE
from attn_fuzz.cases.dimensions.call import CALL, SIZES, WRITE
from attn_fuzz.cases.dimensions.dimension import FLAGS, Causality, Dimension, Ranges, Setting, Value
from attn_fuzz.cases.dimensions.rules import RULE_DIMENSIONS, value_on, values_of

__all__ = [
    "DIMENSIONS",
    "FLAGS",
    "MULTI_TOKEN_DECODE",
    "Causality",
    "Dimension",
    "Ranges",
    "Setting",
    "Value",
    "fields_of_layers",
    "value_on",
    "values_of",
]

DIMENSIONS: Final = (*ATTENTION, *REQUESTS, *RULE_DIMENSIONS, *SIZES, *CACHE, *WRITE, *CALL)
"""All dimensions. Features of a case have this order."""


def fields_of_layers() -> tuple[str, ...]:
    """The fields of Case that say what a layer is, of any attention type."""
    of_layers = [one for one in DIMENSIONS if one.rule or any(name.startswith("Layer.") for name in one.contract)]
    names = {name for dimension in of_layers for name in dimension.fields} - {"attn_type"}
    return tuple(name for name in Case.__struct_fields__ if name in names)
