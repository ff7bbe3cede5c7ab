"""The five reports that this project began with, at the level of backends: each is found if its fix is reverted.

* vLLM #38450: Whisper's beam search went wrong on ROCm. Cross-attention ran on backends whose prefill takes the encoder's
  tokens for the decoder's own. Greedy decoding has one query token per request, which hides a causal mask.
* vLLM #39119: the constructor accepted cross-attention, which the backend's declaration rejected.
* vLLM #40176: DFlash drafts attend to each other both ways. `causal` reaches the kernels from the common metadata alone, and
  the backend whose kernel asserts causal says so before it is called.
* vLLM #43817: GPT-OSS has sinks. The decode kernels know none, so that a decode with sinks has to take another one; an extend
  is merged from two parts, and the sink belongs to one of them.
* vLLM #43945: an encoder-decoder model's layers share one allocation. Self-attention keeps planes of K and V there;
  cross-attention read its view of blocks as it was, so that a block id meant other bytes for one than for the other.
"""

import re
from dataclasses import replace
from pathlib import Path

import attn_lab.zoo.known_bugs
import attn_reference
import pytest
import torch
from attn_contract import AttentionType, KVCacheView, Layout
from attn_optimized.backends import BACKENDS

from tests.support import processes

ENCODER_DECODER = AttentionType.ENCODER_DECODER
TAKES_CROSS_ATTENTION = ("ROCM_AITER_UNIFIED_ATTN", "TRITON_ATTN")
# ROCM_AITER_FA runs on AMD's GPUs or on a test double, and is no target of the zoo: its mutants are here
MUTANTS = [
    *attn_lab.zoo.known_bugs.FOLDER.glob("backend-*.toml"),
    *Path(__file__).with_name("reverted").glob("*.toml"),
]
RUN_MUTATED = """
import pathlib, sys
import pytest
from attn_lab.zoo.known_bugs import load
from attn_fuzz.patches.installation import install

mutant, *arguments = sys.argv[1:]
install(load(pathlib.Path(mutant)))
sys.exit(pytest.main(arguments))
"""


FOUND_BY = {
    "38450": ("test_served.py", "encoder_decoder"),
    "39119": ("test_served.py", "encoder_decoder"),
    "40176": ("test_served.py", "causal"),
    "43817": ("test_served.py", "sinks"),
    "43945": ("test_reverted_fixes.py", "Test43945"),
}
"""By report, the file of the tests that find it, and the name of those tests."""


class Test43945:
    @pytest.mark.parametrize("name", TAKES_CROSS_ATTENTION)
    @pytest.mark.parametrize(
        ("attn_type", "writes"),
        [
            (ENCODER_DECODER, "do_kv_cache_update"),
            (AttentionType.DECODER, "do_kv_cache_update"),
            (AttentionType.DECODER, "do_rope_and_kv_cache_update"),
        ],
    )
    def test_writes_stay_in_the_blocks_that_the_decoder_gave(self, name, attn_type, writes, make_step, aiter, device):
        step = make_step([4, 1], [40, 17], attn_type=attn_type)
        raw, others = step.kv_cache.view(torch.int16).flatten(), elements_of_other_blocks(step)
        before = raw[others].clone()
        impl = BACKENDS[name].impl(step.layer, aiter=aiter, allocation_layout=Layout.X_PACKED, **step.constructor)
        if writes == "do_kv_cache_update":
            impl.do_kv_cache_update(step.key, step.value, step.kv_cache, step.common.slot_mapping)
        else:
            rows = len(step.common.slot_mapping)
            query = step.query.new_zeros(rows, 4, 64)
            positions, cos_sin_cache = torch.arange(rows, device=device), torch.randn(64, 64, device=device)
            rope = step.key, step.value, positions, cos_sin_cache
            impl.do_rope_and_kv_cache_update(query, *rope, step.kv_cache, step.common.slot_mapping, is_neox=True)
        assert len(others)
        assert torch.equal(raw[others], before)
        assert not step.kv_cache.isnan().all()

    @pytest.mark.parametrize(
        ("name", "attn_type"),
        [
            *((name, ENCODER_DECODER) for name in TAKES_CROSS_ATTENTION),
            *((name, AttentionType.DECODER) for name in ("ROCM_AITER_FA", *TAKES_CROSS_ATTENTION)),
        ],
    )
    def test_forward_reads_planes(self, name, attn_type, make_step, aiter):
        backend, step = BACKENDS[name], make_step([4, 1], [40, 17], attn_type=attn_type)
        planes = step.kv_cache.normal_().view(2, len(step.kv_cache), *step.kv_cache.shape[2:])
        layer = replace(step.layer, layout=Layout.KV_FIRST_NHD)
        attn_reference.write_kv_cache(step.key, step.value, planes, layer, step.common.slot_mapping)
        expected, output = (torch.full_like(step.query, torch.nan) for _ in range(2))
        attn_reference.paged_attention(step.query, planes, layer, step.batch, out=expected)

        impl = backend.impl(step.layer, aiter=aiter, allocation_layout=Layout.X_PACKED, **step.constructor)
        metadata = backend.builder(attn_type).build(step.common)
        impl.forward(step.query, step.key, step.value, step.kv_cache, metadata, output=output)
        torch.testing.assert_close(output, expected, rtol=0, atol=5 * 2**-9, equal_nan=True)


def elements_of_other_blocks(step) -> torch.Tensor:
    """Which elements of an allocation lie in blocks that are not this step's, for a decoder that keeps planes there."""
    num_blocks, _, block_size, num_kv_heads, head_size = step.kv_cache.shape
    planes = KVCacheView.dense(
        Layout.X_PACKED,
        num_blocks=num_blocks,
        block_size=block_size,
        num_kv_heads=num_kv_heads,
        head_size=head_size,
        itemsize=step.kv_cache.itemsize,
    )
    others = torch.ones(num_blocks, dtype=torch.bool, device=step.kv_cache.device)
    others[step.common.slot_mapping // block_size] = False
    return planes.tensor(torch.arange(step.kv_cache.numel(), device=step.kv_cache.device))[:, others].flatten()


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda path: path.stem)
def test_a_report_is_found_when_its_fix_is_reverted(mutant):
    """In a process of its own, which imports the mutant's source: see attn_fuzz.patches."""
    tests, chosen = FOUND_BY[re.findall(r"\d+", mutant.stem)[0]]
    arguments = [str(Path(__file__).with_name(tests)), "-k", chosen, "-qx", "--tb=no", "-p", "no:cacheprovider"]
    ended = processes.run(["-c", RUN_MUTATED, mutant, *arguments], cwd=processes.ROOT)
    assert ended.returncode == pytest.ExitCode.TESTS_FAILED, ended.stdout + ended.stderr


def test_every_report_has_a_mutant():
    assert {re.findall(r"\d+", mutant.stem)[0] for mutant in MUTANTS} == set(FOUND_BY)
    assert len(FOUND_BY) == 5
