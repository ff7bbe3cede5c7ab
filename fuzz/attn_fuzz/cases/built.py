"""What a case asks for, and what the layer and the step that are made of it ask for, are the same."""

from typing import TYPE_CHECKING, Any

import torch
from attn_contract import RULES, AttentionType
from attn_contract.attention_config import scales_of
from attn_contract.rules import active_rules
from attn_fuzz.cases.case import Case, written_slots
from attn_fuzz.cases.poison import DTYPES
from attn_fuzz.errors import UnbuiltError

if TYPE_CHECKING:
    from attn_fuzz.cases.tensors import Step


def check(case: Case, step: "Step") -> None:
    """Check that a step has each rule and each setting of its case, and no other one.

    Raises:
        UnbuiltError: the first that differs, by its name.
    """
    flags = {name for name, rule in RULES.items() if rule.is_tensor or rule.holder == "call"}
    rules = {name: name in flags or value for name, value in case.rules.items() if name != "rope" or _rotates(case)}
    for asked, built in ((rules, asked_of(step)), (_settings_of(case), _settings(step))):
        for name in (name for name in {**asked, **built} if asked.get(name) != built.get(name)):
            got, expected = (_shown(name, each) for each in (built, asked))
            raise UnbuiltError(f"{name}: the step has {got}, and its case asks for {expected} (attn_fuzz.cases.tensors)")


def asked_of(step: "Step") -> dict[str, Any]:
    """The rules that a step asks for with their values, as `Case.rules` names them; True for tensors."""
    layer, batch = step.layer, step.batch
    found = {name: RULES[name].is_tensor if _is_tensor(name) else value for name, value in active_rules(layer, batch).items()}
    flags = isinstance(batch.causal, torch.Tensor)
    of_call = {
        "non_causal": layer.attn_type is AttentionType.DECODER and (flags or not batch.causal),
        "per_request_causal": flags,
        "lse": step.lse is not None,
        "rope": any(write.rotation is not None for write in step.writes),
    }
    return found | {name: True for name, is_on in of_call.items() if is_on}


def _rotates(case: Case) -> bool:
    """True if the step has a token to rotate."""
    return case.rope is not None and bool(written_slots(case))


def _is_tensor(name: str) -> bool:
    return name in RULES and RULES[name].is_tensor


def _shown(name: str, having: dict[str, Any]) -> str:
    if not having.get(name):
        return "none"
    return "a tensor" if _is_tensor(name) else str(having[name])


def _settings_of(case: Case) -> dict[str, Any]:
    cache, rows, quantized = case.cache, len(written_slots(case)), case.q_scale is not None
    dtype = DTYPES[case.dtype]
    stored = None if cache is None or cache.dtype is None else DTYPES[cache.dtype]
    return {
        "attn_type": case.attn_type,
        "heads": (case.num_heads, case.num_kv_heads),
        "head_size": case.head_size,
        "scale": case.scale,
        "cache.layout": None if cache is None else cache.layout,
        "cache.dtype": stored,
        "cache.scales": _scales_of(case),
        "cache.writer": None if cache is None or not rows else cache.writer or cache.layout,
        "dtype": stored if quantized else dtype,
        "output_dtype": (case.output_dtype is not None, dtype if case.output_dtype is None else DTYPES[case.output_dtype]),
        "flat_out": case.flat_out,
        "narrow_sinks": None if case.sinks is None else dtype if case.narrow_sinks else torch.float32,
        "rows": (case.num_rows, case.num_actual_tokens),
        "kv_rows_past": rows + case.kv_rows_past if rows else None,
        "slack": (case.max_query_len, max((request.seq_len for request in case.requests), default=0) + case.slack),
        "selected": case.selection_unit is not None,
        "selected_per_head": case.selection_unit is not None and case.selected_per_head and case.num_kv_heads > 1,
        "rope": (case.rope.rotary_dim, case.rope.neox) if case.rope is not None and rows else None,
    }


def _scales_of(case: Case) -> str | None:
    if case.cache is None or case.cache.dtype is None:
        return None
    if case.cache.layout.has_inline_scales:
        return "inline"
    return "tensor" if case.cache.scales == "head" and case.num_kv_heads == 1 else case.cache.scales


def _settings(step: "Step") -> dict[str, Any]:
    layer, batch, sinks = step.layer, step.batch, step.layer.sinks
    own = step.writes[0] if batch.slot_mapping is not None else None
    rotation = own and own.rotation
    return {
        "attn_type": layer.attn_type,
        "heads": (layer.num_heads, layer.num_kv_heads),
        "head_size": layer.head_size,
        "scale": layer.scale,
        "cache.layout": layer.layout,
        "cache.dtype": layer.kv_cache_dtype,
        "cache.scales": scales_of(layer),
        "cache.writer": own and own.view.layout,
        "dtype": step.q.dtype,
        "output_dtype": (layer.output_scale is not None, step.out.dtype),
        "flat_out": step.out.dim() == 2,
        "narrow_sinks": None if sinks is None else sinks.dtype,
        "rows": (len(step.q), batch.num_actual_tokens),
        "kv_rows_past": own and len(own.k),
        "slack": (batch.max_query_len, batch.max_seq_len),
        "selected": batch.selected is not None,
        "selected_per_head": batch.selected is not None and len(batch.selected) > 1,
        "rope": rotation and (rotation.cos_sin_cache.shape[1], rotation.is_neox),
    }
