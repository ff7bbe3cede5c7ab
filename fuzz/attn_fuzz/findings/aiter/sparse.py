"""Bugs in AITER's Triton kernels that attend to selected rows."""

from attn_fuzz.findings.aiter.shared import PREFILL_SPARSE, in_main
from attn_fuzz.findings.finding import NUMBERS

DECODE_SPARSE = (
    in_main(
        name="aiter-decode-sparse-no-sink",
        what="With one split, heads whose sink is -inf, which has no weight, are 0.",
        cause="aiter/ops/triton/_triton_kernels/attention/pa_decode_sparse.py:157-159, _pa_decode_sparse: the sum of weights "
        "begins as exp2(sink - sink), which is NaN.",
        explains=lambda case, verdict: (
            verdict.kind in NUMBERS and case.sinks in ("off", "some") and {each.got for each in verdict.differences} == {0}
        ),
    ),
)
OF_MAIN = (
    in_main(
        name="aiter-prefill-sparse-sinks",
        what="On GPUs other than gfx950 and gfx1250, a step of pa_prefill_sparse with sinks of several heads raises, and one "
        "without sinks gets those of memory that nobody wrote.",
        cause=f"{PREFILL_SPARSE}:202-203: `attn_sink or torch.empty(1)` asks whether a tensor of several numbers is true, and "
        "has_attn_sink is what follows from the result.",
        explains=lambda case, verdict: False,
    ),
)
"""Findings in a source later than that of the wheel, for which the targets are declared."""
