"""A target whose faults are in a file of a package, and whose finding explains every wrong value of a layer with a soft cap."""

import dataclasses

from attn_fuzz import foreign
from attn_fuzz.findings.finding import Finding
from planted import attend
from planted_findings import FINDINGS, KNOWN, SINKS

PACKAGE, FILE = "planted_foreign", "faults.py"
SOURCE = """
def error(layer, batch):
    found = 0
    if layer.logits_soft_cap is not None:
        found += 1
        if batch.num_requests > 1:
            found += 2
    return found
"""


def _attention(q, k, v, kv_cache, layer, batch, *, out, lse) -> None:
    attend(q, k, v, kv_cache, layer, batch, out=out, lse=lse)
    [faults] = foreign.load(PACKAGE, (FILE,))
    out[: int(batch.query_start_loc[-1])] += faults.error(layer, batch)


CAP = Finding(
    name="planted-cap",
    what="With a soft cap the output is off by 1.",
    cause="planted_foreign/faults.py, error: so it is planted.",
    seen_in="every version",
    folder=FINDINGS / "repaired",
    explains=lambda case, verdict: verdict.kind in ("value", "bitwise") and case.logits_soft_cap is not None,
)
TARGET = dataclasses.replace(KNOWN, name="planted-repaired", attention=_attention, findings=(CAP,))


def _with_sinks(q, k, v, kv_cache, layer, batch, *, out, lse) -> None:
    _attention(q, k, v, kv_cache, layer, batch, out=out, lse=lse)
    if layer.sinks is not None:
        out[: int(batch.query_start_loc[-1])] = float("nan")


WIDE = dataclasses.replace(CAP, explains=lambda case, verdict: case.logits_soft_cap is not None)
WITH_SINKS = dataclasses.replace(TARGET, attention=_with_sinks, findings=(WIDE, SINKS))
