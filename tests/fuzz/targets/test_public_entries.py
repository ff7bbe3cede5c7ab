"""Every public function that computes has a target that calls it, or a reason why it needs none."""

import functools
import sys
from inspect import isfunction
from pathlib import Path

import attn_optimized
import attn_optimized.aiter_adapter
import attn_optimized.context_parallel
import attn_optimized.selector
import attn_reference
import pytest
import torch
from attn_contract import ops
from attn_fuzz.cases import tensors
from attn_fuzz.cases.case import Case
from attn_fuzz.run import shard
from attn_fuzz.run.case.attempt import Attempt
from attn_fuzz.run.shard import FuzzPlan
from attn_fuzz.targets import registry
from attn_optimized.backends import BACKENDS

TARGETS = {
    "attn_optimized.paged_attention": "triton",
    "attn_optimized.varlen_attention": "triton-varlen",
    "attn_optimized.cascade_attention": "triton-cascade",
    "attn_optimized.plan_of": "triton@planned",
    "attn_optimized.write_kv_cache": "triton-write",
    "attn_optimized.write_latent_cache": "triton-latent",
    "attn_optimized.rope_and_write_kv_cache": "triton-write",
    "attn_optimized.merge_attn_states": "triton-merge",
    "attn_optimized.merge_attn_parts": "triton-merge-parts",
    "attn_optimized.write_index_cache": "triton-indexer",
    "attn_optimized.index_logits": "triton-indexer",
    "attn_optimized.select": "triton-indexer",
    "attn_reference.paged_attention": "reference-fp32",
    "attn_reference.varlen_attention": "reference-fp32",
    "attn_reference.write_kv_cache": "reference-fp32",
    "attn_reference.rope_and_write_kv_cache": "reference-fp32",
    "attn_reference.write_latent_cache": "reference-fp32",
    "attn_reference.merge_attn_states": "torch-ops-merge",
    "attn_reference.merge_attn_parts": "torch-ops-merge-parts",
    "attn_reference.attend": "torch-ops-merge",
    "attn_reference.paged_requests": "torch-ops-merge",
    "attn_reference.varlen_requests": "torch-ops-merge",
    "attn_parity::paged_attention": "torch-ops",
    "attn_parity::varlen_attention": "torch-ops",
    "attn_parity::write_kv_cache": "torch-ops",
    "attn_parity::rope_and_write_kv_cache": "torch-ops",
    "attn_parity::write_latent_cache": "torch-ops@latent",
    "attn_parity::merge_attn_states": "torch-ops-merge",
    "attn_parity::merge_attn_parts": "torch-ops-merge-parts",
    "attn_parity::write_index_cache": "torch-ops@indexer",
    "attn_parity::index_logits": "torch-ops@indexer",
    "attn_parity::select": "torch-ops@indexer",
    "attn_optimized.context_parallel.local_layer": "triton-ranks",
    "attn_optimized.context_parallel.local_step": "triton-ranks",
    "attn_optimized.context_parallel.weighted_part": "triton-ranks",
    "attn_optimized.context_parallel.attend_over_ranks": "triton-over-ranks",
    "TRITON_ATTN": "backend-triton",
    "TRITON_ATTN_DIFFKV": "backend-triton-diffkv",
    "ROCM_ATTN": "backend-rocm-attn",
    "TRITON_MLA": "backend-triton-mla",
    "ROCM_AITER_MLA_SPARSE": "backend-rocm-aiter-mla-sparse",
    "MINIMAX_M3_SPARSE": "backend-minimax-m3-sparse",
}
_ON_THE_DOUBLE = "AITER needs AMD's GPUs: tests/fuzz/targets/test_aiter_calls.py calls it on a double"
_ON_DISK = "packages on disk: tests/optimized/aiter_adapter/test_aiter_adapter.py"
REASONS = {
    "ROCM_AITER_UNIFIED_ATTN": _ON_THE_DOUBLE,
    "ROCM_AITER_FA": _ON_THE_DOUBLE,
    **{
        f"attn_optimized.aiter_adapter.{name}": _ON_THE_DOUBLE
        for name in ("unified_attention", "flash_attn_varlen", "paged_attention_v1", "pa_fwd_asm")
    },
    **{f"attn_optimized.aiter_adapter.{name}": _ON_DISK for name in ("find_aiter", "import_aiter", "features_of")},
    "ROCM_AITER_MLA": "it refuses every layer",
    "ROCM_AITER_TRITON_MLA": "it refuses every layer",
    "attn_reference.context_parallel": "a module that tests/reference compares with tables, and reference-ranks calls",
    "attn_optimized.aiter_adapter.recorded": "the signatures of the double, which takes no other arguments",
    **{
        f"attn_optimized.aiter_adapter.{name}": "a part of unified_attention"
        for name in ("native_float8", "unified_block_sizes", "is_beside_tiles", "is_foreign_cache", "is_no_tile_of")
    },
    "attn_optimized.aiter_adapter.may_run_assembly": "a part of flash_attn_varlen",
    "attn_optimized.selector.select": "no kernel: tests/optimized/selector draws layers, architectures and AITERs",
    "attn_optimized.selector.select_model": "no kernel: tests/optimized/selector draws models",
    "attn_optimized.selector.priorities": "a part of select",
    "attn_optimized.selector.cache_kind": "a part of select",
    "attn_optimized.selector.parse_architecture": "a part of select",
    "attn_optimized.selector.this_architecture": "it asks the device, and select is told an architecture",
    "attn_reference.IMPLEMENTED_RULES": "names",
    "attn_reference.Attention": "a tuple, which attend returns",
    "attn_reference.Request": "an input of attend",
    "attn_reference.gather_kv_cache": "a part of the definition, compared with literal tables by tests/reference",
    "attn_reference.index_logits": "compared with loops by tests/reference; each target of an index layer is judged by it",
    "attn_reference.select": "compared with sets by tests/reference; each target of an index layer may take it for a stage",
    "attn_reference.write_index_cache": "compared with bytes by tests/reference; each target of an index layer is judged by it",
    "attn_reference.visible": "a part of the definition, compared with truth tables by tests/reference",
    "attn_reference.group_scales": "a part of the definition, compared with closed forms by tests/reference",
    "attn_reference.e8m0_numbers": "a part of the definition, compared with closed forms by tests/reference",
    "attn_reference.e8m0_scales": "a part of the definition, compared with closed forms by tests/reference",
    "attn_reference.dequantize": "a part of the definition, compared with closed forms by tests/reference",
    "attn_reference.quantize": "a part of the definition, compared with closed forms by tests/reference",
    "attn_reference.row_scales": "a part of the definition, compared with closed forms by tests/reference",
}


def public_entries() -> set[str]:
    functions = {f"{package.__name__}.{name}" for package in (attn_optimized, attn_reference) for name in package.__all__}
    rooms = (attn_optimized.aiter_adapter, attn_optimized.context_parallel, attn_optimized.selector)
    functions |= {f"{room.__name__}.{name}" for room in rooms for name in room.__all__ if isfunction(getattr(room, name))}
    return {*functions, *(f"attn_parity::{op}" for op in ops.SCHEMAS), *BACKENDS}


def test_every_public_entry_has_a_target_or_a_reason():
    assert public_entries() == {*TARGETS, *REASONS}
    assert not TARGETS.keys() & REASONS.keys()
    assert {*TARGETS.values()} <= {*registry.battery()}


class Called(BaseException):
    """The entry was called."""


def _raise(*args, **options) -> None:
    raise Called


@functools.cache
def drawn(target: str) -> list[Case]:
    return shard.drawn(FuzzPlan(target=target, device="cpu", examples=60, seed=1, folder=Path()))


@pytest.mark.parametrize("entry", TARGETS)
def test_the_target_calls_the_entry(entry, monkeypatch):
    """A target whose function calls another one would check nothing of this one."""
    target = registry.load(TARGETS[entry])
    for case in drawn(target.name):
        step = tensors.build(case)  # the reference writes what the cache holds before the step
        with monkeypatch.context() as patched:
            patched.setattr(tensors, "build", lambda case, device, step=step: step)
            _break(entry, patched)
            if isinstance(Attempt(case, target, "cpu").error, Called):
                return
    pytest.fail(f"{target.name} never called {entry}")


def _break(entry: str, patched: pytest.MonkeyPatch) -> None:
    """Have a call of the entry raise."""
    if entry in BACKENDS:
        method = "forward_mqa" if "MLA" in entry else "forward"
        patched.setattr(BACKENDS[entry].impl, method, _raise)
    elif "::" in entry:
        function = getattr(torch.ops.attn_parity, entry.removeprefix("attn_parity::"))
        patched.setattr(function, "default", _WithSchema(function.default._schema))
    else:
        package, _, name = entry.rpartition(".")
        patched.setattr(sys.modules[package], name, _raise)


class _WithSchema:
    """An op that says its arguments and cannot be called."""

    def __init__(self, schema) -> None:
        self._schema = schema

    __call__ = staticmethod(_raise)


@pytest.mark.nightly
@pytest.mark.parametrize(
    ("target", "place", "find", "replace"),
    [
        ("triton@returned", "attention._attend", "return call.out", "return torch.zeros_like(q)"),
        ("triton-cascade@returned", "cascade.cascade_attention", "return out", "return torch.zeros_like(q)"),
        (
            "triton-latent@returned",
            "launch.call.new_output",
            "q.new_empty((len(q), layer.num_heads, layer.v_head_size), dtype=dtype_of_output(q, layer))",
            "torch.empty_like(q)",
        ),
        ("triton-merge", "merge.merge_attn_states", "return out", "return out_b"),
    ],
)
def test_a_wrong_tensor_that_is_returned_is_found(target, place, find, replace, finds_fault):
    finds_fault(target, f"attn_optimized.{place}", find, replace, examples=60)


@pytest.mark.nightly
@pytest.mark.parametrize("lacking", ["*tensors", "rotated"])
def test_a_launch_of_another_write_is_found(lacking, finds_fault):
    """Launches are kept by a key that lacks something."""
    key = ["*tensors", "rotated", "layer.signature", "k.device", "offset_of_scales(kv_cache, layer)"]
    find, replace = (f"({', '.join(part for part in key if part != left_out)})" for left_out in (None, lacking))
    finds_fault("triton-write", "attn_optimized.kv_cache._signature", find, replace, examples=300)
