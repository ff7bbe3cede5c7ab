"""AITER's Gluon kernels: each finding fails where AITER's main is, and explains no other kernel's path."""

import msgspec
import pytest
from attn_fuzz.cases import case_file
from attn_fuzz.cases.case import Values
from attn_fuzz.findings import aiter
from attn_fuzz.verdict.verdict import Verdict

GROUPS = (
    *(aiter.GLUON_UNIFIED, aiter.GLUON_DECODE, aiter.GLUON_SPARSE, aiter.GLUON_SPARSE_GFX1250, aiter.GLUON_MLA),
    *(aiter.GLUON_PREFILL_SPARSE, aiter.GLUON_PREFILL_SPARSE_GFX1250),
)
FINDINGS = {finding.name: finding for each in GROUPS for finding in each}


@pytest.mark.parametrize(
    ("name", "kind", "changes"),
    [
        ("aiter-gluon-stride-of-blocks", "value", {"cache": {"planes": True}}),
        ("aiter-gluon-stride-of-blocks", "value", {"requests": {"query_len": 1}}),  # Triton's kernel
        ("aiter-gluon-power-of-two-heads", "raised", {"group_size": 4}),
        ("aiter-gluon-infinite-sink", "nan", {"scale": 1.0}),
        ("aiter-gluon-sparse-no-sink", "nan", {"sinks": "zero"}),
        ("aiter-gluon-prefill-sink-per-part", "value", {"requests": {"seq_len": 64}}),
        ("aiter-gluon-prefill-holes", "value", {"selected": "all"}),
        ("aiter-gluon-prefill-short-holes", "nan", {"selected": "all"}),
        ("aiter-gluon-prefill-no-sink", "nan", {"sinks": "zero"}),
        ("aiter-gluon-infinite-sink", "nan", {"requests": {"query_len": 1}}),
        ("aiter-gluon-hidden-tile", "value", {"selected": "some"}),
        ("aiter-gluon-slot-0", "nan", {"requests": {"blocks": (0,)}}),
        ("aiter-gluon-mla-one-part", "value", {"requests": {"query_len": 2}}),
        ("aiter-gluon-tile-without-keys", "nan", {"values": Values("random", 0)}),
        ("aiter-gluon-negative-scales", "value", {"cache": {"scales": "tensor"}}),
    ],
)
def test_a_finding_explains_what_its_lines_can_cause_alone(name, kind, changes):
    case, verdict = case_file.load(FINDINGS[name].path), Verdict(kind=kind, about="out")
    assert FINDINGS[name].explains(case, verdict)
    if "cache" in changes:
        changes = {"cache": msgspec.structs.replace(case.cache, **changes["cache"])}
    if "requests" in changes:
        changes = {"requests": tuple(msgspec.structs.replace(each, **changes["requests"]) for each in case.requests)}
    assert not FINDINGS[name].explains(msgspec.structs.replace(case, **changes), verdict)
