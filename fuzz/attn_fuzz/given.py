"""For Hypothesis tests of one's own: `@given(cases(support))`, `build(case)`, and `attn_fuzz.check`.

    @given(cases(Support(attn_types=(AttentionType.DECODER,), dtypes=("float32",), layouts=(Layout.BLOCKS_FIRST_NHD,))))
    @settings(deadline=None)
    def test_my_kernel(case):
        call = build(case)
        out = my_kernel(call.q, call.kv_cache, call.layer, call.batch)
        check(call, out).raise_for_differences()

Hypothesis draws, and shrinks what fails there by its own means, which know nothing of attention. `attn-parity fuzz` draws by
Hypothesis, too, and its shrinking is this project's: it ends at smaller cases, and finds more with the same draws.
"""

from attn_fuzz.cases import tensors
from attn_fuzz.cases.call import Call
from attn_fuzz.cases.case import Case
from attn_fuzz.run.case.attempt import write
from attn_fuzz.strategies import cases as drawn_cases
from attn_fuzz.targets.reference import REFERENCE_FP32
from attn_fuzz.targets.support import Support
from hypothesis import strategies as st


def cases(support: Support) -> st.SearchStrategy[Case]:
    """Steps of a layer that a kernel supports, without calls that it must refuse.

    Each is a record (`attn_fuzz.cases.case.Case`) that `attn-parity show` draws and `attn-parity replay` runs.
    """
    return drawn_cases("given", support, refuses=False)


def build(case: Case) -> Call:
    """The call of a case, as tensors on the CPU, after the reference has written the step's keys and values into the cache.

    Slots that hold no key, and entries past the end of tables, hold what no kernel may use: NaN and blocks that are not there.
    """
    step = tensors.build(case)
    for each in step.writes:
        write(each, step, REFERENCE_FP32)
    dense = {"k": step.k, "v": step.v} if step.kv_cache is None else {}
    return Call(q=step.q, layer=step.layer, batch=step.batch, kv_cache=step.kv_cache, **dense)
