"""FlagGems' `mha_varlan_fwd`, of its `flash_attn_varlen_func`: ATTN_PARITY_FLAG_GEMS names a folder that holds flag_gems 5.0.2.

It makes block pointers, which Triton 3.9 does not have. ops/flash_kernel.py takes a cache's blocks to lie after each other
(`virtual_to_cache`), and the LSE of a causal call with ALiBi lacks the slope times the last position, as FlashAttention's does.
For a decode of grouped heads ops/flash_api.py returns the LSE of other requests and heads (`seqlenq_ngroups_swapped`).
"""

import contextlib
import functools
from types import SimpleNamespace

from attn_contract import AttentionType, Layout
from attn_fuzz import foreign
from attn_fuzz.targets import Engine, Rounding, Support, Target
from triton.language.extra import libdevice

FILES = ("ops/flash_api.py", "ops/flash_kernel.py", "runtime/backend/_amd/heuristics_config_utils.py")


class _Device:
    """FlagGems' `torch_device_fn`: `torch.cuda`, of an MI300X."""

    @staticmethod
    def get_device_properties(device):
        return SimpleNamespace(multi_processor_count=304)

    @staticmethod
    def device(device):
        return contextlib.nullcontext()


def _config(name):
    return modules()[2].HEURISTICS_CONFIGS[name]


RUNTIME = SimpleNamespace(get_heuristic_config=_config, get_tuned_config=lambda name: [])
STUBS = {
    "flag_gems": {"device": "cpu", "vendor_name": "amd", "runtime": RUNTIME},
    "flag_gems.runtime": {"torch_device_fn": _Device},
    "flag_gems.utils": {"libentry": lambda: lambda kernel: kernel, "tl_extra_shim": libdevice},
    "flag_gems.utils.random_utils": {"philox_backend_seed_offset": None},
}


@functools.cache
def modules():
    return foreign.load("flag_gems", FILES, stubs=STUBS)


def attention(q, k, v, kv_cache, layer, batch, *, out, lse):
    k_cache, v_cache = foreign.keys_and_values(kv_cache, layer)
    n, left = batch.num_actual_tokens, layer.window[0]
    right = -1 if left < 0 else 0
    found = modules()[0].mha_varlan_fwd(
        q[:n], k_cache, v_cache, None, batch.query_start_loc, batch.query_start_loc, batch.seq_lens, None, batch.block_table,
        layer.alibi_slopes, batch.max_query_len, batch.max_seq_len, 0.0, layer.scale, False, True, left, right,
        layer.logits_soft_cap or 0.0, False, None,
    )  # fmt: skip
    out.view(q.shape)[:n] = found[0]
    if lse is not None:
        lse[:, :n] = found[4]


def _excluded(case):
    return "the LSE with ALiBi" if case.alibi_slopes and case.lse else "its LSE" if _swaps(case) else None


def _swaps(case):
    """True if it takes the heads of a group for queries: its LSE is then that of other rows, with several requests."""
    ones = all(each.query_len == 1 for each in case.requests)
    return ones and case.group_size > 1 and not case.alibi_slopes and case.lse and len(case.requests) > 1


def _target(name, dtypes, excluded, **engine):
    known = Engine(
        windows=("left",), more_queries_than_keys=False, empty_requests=False, empty_batches=False, saturated=False,
        scale_signs=(1,), unowned_rows=(0,), recycled=False, **engine,
    )  # fmt: skip
    return Target(
        name=name,
        description="FlagGems' flash_attn_varlen_func over a paged cache",
        attention=attention,
        support=lambda device: Support(
            attn_types=(AttentionType.DECODER,), dtypes=dtypes, layouts=(Layout.KV_FIRST_NHD,),
            rules=("window", "logits_soft_cap", "alibi_slopes", "lse"), head_sizes=(64, 128, 32), block_sizes=(16, 32),
            max_tokens=64, max_seq_len=256, engine=known, exclude=excluded,
        ),
        refuses=False,
        unavailable=lambda device: foreign.missing("flag_gems", FILES, "flag-gems==5.0.2"),
        rounding=lambda device: Rounding(keys_per_tile=64, dot_is_chained=device != "cpu"),
        modules=modules,
    )  # fmt: skip


ONE_AFTER_ANOTHER = {"num_layers": (1,), "padding": (0,), "other_views": False, "planes": (True,)}
FP16, BF16 = (
    _target(
        f"flag-gems-{each}",
        (each,),
        _excluded,
        **ONE_AFTER_ANOTHER,
    )
    for each in ("float16", "bfloat16")
)
"""What holds beside the known defects."""
BLOCKS = _target("flag-gems-blocks", ("float16",), _excluded)
SWAPPED = _target(
    "flag-gems-lse",
    ("float16",),
    lambda case: None if _swaps(case) else "another call",
    query_lens=("one",),
    **ONE_AFTER_ANOTHER,
)
