"""SGLang's verify_splitkv_fwd, by which its triton backend verifies drafts on gfx950 (1843-1880).

It is called where each request has the same number of drafts, a prefix, and neither window, sinks nor a soft cap
(kernels/ops/attention/verify_splitkv.py, can_handle), with a topk of 1 and SGLANG_ENABLE_SPLITKV_VERIFY (238-242). It reads the
prefix from the cache and the drafts from k and v. Its parts are memory of torch.empty that is kept between steps.
"""

import dataclasses

from attn_fuzz import foreign
from attn_fuzz.errors import FailedCheckError
from attn_fuzz.findings.sglang import VERIFY
from attn_fuzz.targets.packages.sglang import package as sglang_package
from attn_fuzz.targets.packages.sglang.package import extend_arguments
from attn_fuzz.targets.packages.slots import slots_of_requests
from attn_fuzz.verdict.rounding import Rounding

SOURCES = sglang_package.ops("verify_splitkv")


def _attention(q, k, v, kv_cache, layer, batch, *, out, lse) -> None:
    [module] = SOURCES.load()
    k_cache, v_cache = foreign.keys_and_values(kv_cache, layer)
    rows = int(batch.query_start_loc[-1])
    drafts = rows // batch.num_requests
    prefixes = batch.seq_lens - drafts
    indptr, indices = slots_of_requests(batch, prefixes, k_cache.shape[1])
    ran = module.verify_splitkv_fwd(
        *extend_arguments(q, k, v, out.view(q.shape), k_cache, v_cache, batch, indptr, indices),
        drafts,
        1.0,
        1.0,
        layer.scale,
        max_bs=batch.num_requests,
    )
    if not ran:
        raise FailedCheckError(
            "served", "verify_splitkv_fwd", "it leaves a step to extend_attention_fwd that this target declares"
        )


def _forget() -> None:
    """Drop the parts that are kept between steps."""
    if SOURCES.unavailable("cpu") is None:
        [module] = SOURCES.load()
        module._VK_CACHE.clear()


SGLANG_VERIFY_SPLITKV = SOURCES.target(
    name="sglang-verify-splitkv",
    description="the Triton verify_splitkv_fwd of SGLang, as its triton backend calls it for drafts on gfx950",
    attention=_attention,
    support=sglang_package.support(
        engine=dataclasses.replace(sglang_package.ENGINE, query_lens=("equal",), prompts=False),
        max_tokens=48,
        max_seq_len=600,
    ),
    rounding=Rounding(keys_per_tile=64, splits=17),
    dense_keys=lambda case: [True] * len(case.requests),
    forget=_forget,
    findings=VERIFY,
)
