"""A target with two faults, of which one is a known finding: sinks make it NaN, and a soft cap is off by 1."""

import dataclasses
from pathlib import Path

from attn_fuzz.findings.finding import Finding
from attn_fuzz.targets.reference import REFERENCE_FP32
from planted import SMALL, attend

FINDINGS = Path(__file__).parent / "findings"
"""A folder with the stored case of each target."""

SINKS = Finding(
    name="planted-sinks",
    what="A sink makes the output NaN.",
    cause="planted_findings.py, attention: so it is planted.",
    seen_in="every version",
    folder=FINDINGS / "known",
    explains=lambda case, verdict: verdict.kind == "nan" and case.sinks is not None,
)


def sinks_are_nan(q, k, v, kv_cache, layer, batch, *, out, lse) -> None:
    attend(q, k, v, kv_cache, layer, batch, out=out, lse=lse)
    if layer.sinks is not None:
        out[: int(batch.query_start_loc[-1])] = float("nan")


def and_caps_are_wrong(q, k, v, kv_cache, layer, batch, *, out, lse) -> None:
    sinks_are_nan(q, k, v, kv_cache, layer, batch, out=out, lse=lse)
    if layer.logits_soft_cap is not None and batch.num_requests:
        out[: int(batch.query_start_loc[-1])] += 1


KNOWN = dataclasses.replace(
    REFERENCE_FP32,
    name="planted-known",
    attention=sinks_are_nan,
    support=lambda device: dataclasses.replace(SMALL, output_dtypes=()),
    refuses=False,
    findings=(SINKS,),
)
UNKNOWN_TOO = dataclasses.replace(KNOWN, name="planted-unknown-too", attention=and_caps_are_wrong)
FIXED = dataclasses.replace(
    KNOWN, name="planted-fixed", attention=attend, findings=(dataclasses.replace(SINKS, folder=FINDINGS / "fixed"),)
)
ANOTHERS = dataclasses.replace(FIXED, name="planted-anothers", findings=(SINKS,))
"""The stored case of its finding is of the target KNOWN."""
NEEDS_GPU = dataclasses.replace(KNOWN, findings=(dataclasses.replace(SINKS, needs_gpu=True),))
NEEDS_GPU_FIXED = dataclasses.replace(FIXED, findings=(dataclasses.replace(FIXED.findings[0], needs_gpu=True),))


def refuses_sinks(q, k, v, kv_cache, layer, batch, *, out, lse) -> None:
    if layer.sinks is not None:
        raise NotImplementedError("sinks are NaN")
    attend(q, k, v, kv_cache, layer, batch, out=out, lse=lse)


REFUSING = dataclasses.replace(
    KNOWN,
    name="planted-refusing",
    attention=refuses_sinks,
    support=lambda device: dataclasses.replace(SMALL, output_dtypes=(), rules=tuple(set(SMALL.rules) - {"sinks"})),
    refuses=True,
    findings=(dataclasses.replace(SINKS, folder=FINDINGS / "refusing"),),
)
"""What knows of its fault and refuses the case does not fail, and is not repaired either."""
