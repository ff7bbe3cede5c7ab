"""The parts of the fuzzer that find mutants. The page of the zoo counts by them."""

PARTS_OF_FUZZER = {
    "value": ("value", "bitwise", "lse", "rope"),
    "poison": ("nan", "unwritten"),
    "stray writes": ("cache", "guard", "input"),
    "exact": ("exact",),
    "property": ("property",),
    "sanitizer": ("sanitizer", "fence"),
    "exception": ("raised",),
    "no refusal": ("served",),
    "dead process": ("crashed", "hung"),
}
"""The kinds of verdicts that each part gives. Every kind that finds something is of one part."""
