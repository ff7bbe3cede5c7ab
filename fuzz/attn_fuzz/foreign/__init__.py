"""Other people's kernels: their modules loaded without their package, and a cache as the tensors that they take.

    from attn_fuzz import foreign

    [module] = foreign.load("vllm", ("v1/attention/ops/triton_unified_attention.py",), stubs={...})
    k, v = foreign.keys_and_values(kv_cache, layer)

docs/guide/foreign-kernels.md has a complete example.
"""

from attn_fuzz.foreign.loading import (
    REPAIRED,
    REPAIRED_CODE,
    MissingSourcesError,
    as_on_a_gpu,
    call,
    findable,
    load,
    missing,
    repaired,
    repaired_code,
    sources,
    variable,
)
from attn_fuzz.foreign.views import keys_and_values, packed_keys_and_values

__all__ = [
    "REPAIRED",
    "REPAIRED_CODE",
    "MissingSourcesError",
    "as_on_a_gpu",
    "call",
    "findable",
    "keys_and_values",
    "load",
    "missing",
    "packed_keys_and_values",
    "repaired",
    "repaired_code",
    "sources",
    "variable",
]
