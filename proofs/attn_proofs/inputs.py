"""The arguments of the kernels as symbols, for any launch."""

import ast
from typing import Any

from attn_proofs.sources import Sources
from attn_proofs.values import Pointer, Record, Tensor, symbol

ARGUMENTS = "attn_optimized.kernels.arguments"
DTYPES_OF_POINTERS = {
    "block_table_ptr": "int32",
    "bidirectional_ranges_ptr": "int32",
    "selected_ptr": "int32",
    "query_start_loc_ptr": "int32",
    "seq_lens_ptr": "int32",
    "causal_ptr": "bool",
    "slot_mapping_ptr": "int64",
    "positions_ptr": "int64",
}
"""The types of the contract's integer tensors (contract/attn_contract/batch.py); all other tensors hold floats or bytes."""
_FLOATS = {"scale", "logits_soft_cap"}
KIND = {
    "q_unit": 1,
    "kv_unit": 1,
    "is_paged": True,
    "block_size": 16,
    "interior": "rows",
    "x": 4,
    "q_format": "float",
    "q_scale_step": 0,
    "kv_format": "float",
    "out_format": "float",
    "has_token_scales": False,
    "has_value_pairs": False,
    "has_float16_dots": False,
    "has_integer_bfloat16": False,
    "has_hidden_dots": False,
    "has_sums_in_columns": False,
    "scale_sign": 1,
    "has_other_masks": False,
    "selection_unit": 0,
    "key_unit": 1,
    "has_unmasked_loop": True,
    "skips_masked_loop": False,
    "has_soft_cap": False,
    "has_bias": False,
    "is_partial": False,
    "has_dependent": False,
    "head_size": 16,
    "groups_per_kv_head": 1,
    "heads_per_kv_head": 0,
    "small_block_m": 0,
    "block_m": 64,
    "block_n": 64,
    "block_d": 16,
}
"""A kind of the attention kernel; theorems name what they vary."""


def fields_of(sources: Sources, place: str) -> list[str]:
    """The fields of a NamedTuple or dataclass, from its source."""
    module, _, name = place.rpartition(".")
    found = sources.find(module, name)
    assert found is not None
    assert isinstance(found.node, ast.ClassDef)
    return [item.target.id for item in found.node.body if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name)]


def pointer(name: str) -> Pointer:
    """The first element of a tensor."""
    return Pointer(name, DTYPES_OF_POINTERS.get(name, "float"), 0)


def record(sources: Sources, place: str, dtype: str, **given: Any) -> Record:
    """A record whose fields are symbols named after them, except for given ones."""
    fields = {
        name: given[name]
        if name in given
        else pointer(name)
        if name.endswith("_ptr")
        else symbol(name, "float" if name in _FLOATS else dtype)
        for name in fields_of(sources, place)
    }
    return Record(place.rpartition(".")[2], fields)


def kind(**changes: Any) -> Record:
    """The attention kernel's KIND. Unless `changes` say otherwise, V is as wide as K, which one dot takes."""
    whole = KIND | changes
    widths = dict.fromkeys(("first_size", "v_head_size"), whole["head_size"]) | {"block_v": whole["block_d"]}
    widths |= {"first_v_head_size": whole.get("v_head_size", whole["head_size"]), "block_rest": 0, "block_v_rest": 0}
    return Record("Kind", widths | whole)


def arguments(sources: Sources, *, flags: dict[str, int] | None = None, **given: Any) -> Record:
    """The kernel's arguments in groups. Flags are 0 unless given."""
    names = fields_of(sources, f"{ARGUMENTS}.Flags")
    rules = {name: value for name, value in given.items() if name in fields_of(sources, f"{ARGUMENTS[:-9]}visibility.Rules")}
    sizes = {name: value for name, value in given.items() if name in fields_of(sources, f"{ARGUMENTS}.Sizes")}
    return Record(
        "Arguments",
        {
            "tensors": record(sources, f"{ARGUMENTS}.Tensors", "float"),
            "flags": Record("Flags", {name: (flags or {}).get(name, 0) for name in names}),
            "rules": record(sources, f"{ARGUMENTS[:-9]}visibility.Rules", "int32", **rules),
            "sizes": record(sources, f"{ARGUMENTS}.Sizes", "int32", **sizes),
            "strides": record(sources, f"{ARGUMENTS}.Strides", "int64"),
        },
    )


def tile(sources: Sources, **given: Tensor | int) -> Record:
    """A tile of queries, as `find_tile` leaves it: int64, but for the hidden zero."""
    return record(sources, "attn_optimized.kernels.query_tiles.Tile", "int64", **{"hidden_zero": 0, **given})
