"""The five reports that this project began with, each as it was: at the level of backends."""

import re
from dataclasses import replace
from pathlib import Path

import attn_lab.zoo.known_bugs
import attn_reference
import pytest
import torch
from attn_contract import AttentionType, KVCacheView, Layout, UnsupportedError
from attn_optimized.backends import BACKENDS, AttentionImpl

from tests import processes

ENCODER_DECODER = AttentionType.ENCODER_DECODER
SINKS = [0.5, 3.0, -3.0, -torch.inf]
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
PLAIN = [name for name, backend in BACKENDS.items() if issubclass(backend.impl, AttentionImpl)]


class Test38450:
    """Whisper's beam search went wrong on ROCm: cross-attention ran on backends whose prefill takes the encoder's tokens
    for the decoder's own. Greedy decoding has one query token per request, which hides a causal mask."""

    @pytest.mark.parametrize("query_lens", [[1, 1], [4, 4], [3, 1]], ids=["greedy", "beams", "both"])
    @pytest.mark.parametrize("name", TAKES_CROSS_ATTENTION)
    def test_beams_see_all_the_encoders_tokens(self, name, query_lens, make_step, assert_agrees):
        assert_agrees(BACKENDS[name], make_step(query_lens, [40, 17], attn_type=ENCODER_DECODER))

    @pytest.mark.parametrize(("name", "layout"), [("ROCM_ATTN", Layout.X_PACKED), ("ROCM_AITER_FA", Layout.BLOCKS_FIRST_NHD)])
    def test_who_cannot_says_why_and_who_can(self, name, layout, make_step, aiter):
        step = make_step([4], [40], attn_type=ENCODER_DECODER, layout=layout)
        with pytest.raises(NotImplementedError, match=f"^{name}: cross-attention .* #38450.*; use .*TRITON_ATTN$"):
            BACKENDS[name].impl(step.layer, aiter=aiter, **step.constructor)


class Test39119:
    """The constructor accepted cross-attention, which the backend's declaration rejected: a path that asked only the
    constructor would have got silently wrong attention."""

    @pytest.mark.parametrize("name", PLAIN)
    def test_the_constructor_refuses_exactly_what_the_declaration_does(self, name, make_step, aiter):
        backend = BACKENDS[name]
        capabilities = backend.capabilities(aiter)
        for attn_type in AttentionType:
            # a width of V of its own where the backend wants one; cross-attention has none
            has_width = capabilities.answer("head_size_v") and attn_type is not ENCODER_DECODER
            width = {"head_size_v": 48} if has_width else {}
            step = make_step([4], [4], attn_type=attn_type, layout=capabilities.layouts.values[0], **width)
            if capabilities.attn_types[attn_type]:
                backend.impl(step.layer, aiter=aiter, **step.constructor)
            else:
                with pytest.raises(UnsupportedError) as error:
                    backend.impl(step.layer, aiter=aiter, **step.constructor)
                assert str(capabilities.attn_types[attn_type]) in error.value.reason

    def test_the_error_explains_cu_seqlens_k_and_causal(self, make_step, aiter):
        step = make_step([4], [40], attn_type=ENCODER_DECODER)
        with pytest.raises(NotImplementedError) as error:
            BACKENDS["ROCM_AITER_FA"].impl(step.layer, aiter=aiter, **step.constructor)
        assert str(error.value) == (
            "ROCM_AITER_FA: cross-attention (ENCODER_DECODER) not supported: its prefill takes cu_seqlens_k from the decoder's "
            "query_start_loc with causal=True (vLLM #39119, #38450); use ROCM_AITER_UNIFIED_ATTN or TRITON_ATTN"
        )


class Test40176:
    """DFlash drafts attend to each other both ways. `causal` reaches the kernels from the common metadata alone, keys beyond a
    sequence stay out of the denominator, and the backend whose kernel asserts causal says so before it is called."""

    @pytest.mark.parametrize(("name", "layout"), [("ROCM_ATTN", Layout.X_PACKED), ("TRITON_ATTN", Layout.BLOCKS_FIRST_NHD)])
    def test_a_non_causal_step_agrees(self, name, layout, make_step, assert_agrees):
        assert_agrees(BACKENDS[name], make_step([9, 1], [75, 33], layout=layout, causal=False))

    @pytest.mark.parametrize("causal", [False, torch.tensor([True, False])], ids=["step", "one request"])
    @pytest.mark.parametrize("name", ["ROCM_AITER_UNIFIED_ATTN", "ROCM_AITER_FA"])
    def test_a_causal_kernel_refuses_it(self, name, causal, make_step, refuses):
        step = make_step([9, 1], [75, 33], causal=causal)
        refuses(BACKENDS[name], step, UnsupportedError, rf"^{name}: .*asserts causal \(vLLM #40176\)")


class Test43945:
    """An encoder-decoder model's layers share one allocation. Self-attention keeps planes of K and V there; cross-attention
    read its view of blocks as it was, so that a block id meant other bytes for one than for the other."""

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


class Test43817:
    """GPT-OSS has sinks. The decode kernels know none, so that a decode with sinks has to take another one; an extend is merged
    from two parts, and the sink belongs to one of them."""

    @pytest.mark.parametrize("name", ["ROCM_AITER_FA", "ROCM_AITER_UNIFIED_ATTN", "TRITON_ATTN"])
    @pytest.mark.parametrize(
        ("query_lens", "seq_lens"),
        [([1, 1], [40, 17]), ([20, 7], [90, 60]), ([20, 7], [20, 7]), ([1, 20, 7], [40, 90, 7])],
        ids=["decode", "extend", "prefill", "mixed"],
    )
    def test_sinks_count_once_in_every_phase(self, name, query_lens, seq_lens, make_step, assert_agrees):
        assert_agrees(BACKENDS[name], make_step(query_lens, seq_lens, sinks=SINKS))

    def test_decode_leaves_the_kernel_without_sinks(self, make_step, assert_agrees, calls):
        assert_agrees(BACKENDS["ROCM_AITER_FA"], make_step([1, 1], [40, 17], sinks=SINKS))
        assert [call.function for call in calls] == ["unified_attention"]

    def test_rocm_attn_has_none(self, make_step, aiter):
        step = make_step([1], [9], sinks=SINKS, layout=Layout.X_PACKED)
        with pytest.raises(UnsupportedError, match=r"sinks not supported: .* lose them after its prefill"):
            BACKENDS["ROCM_ATTN"].impl(step.layer, aiter=aiter, **step.constructor)


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda path: path.stem)
def test_a_report_fails_when_its_fix_is_reverted(mutant):
    """In a process of its own, which imports the mutant's source: see attn_fuzz.patches."""
    report = re.findall(r"\d+", mutant.stem)[0]
    arguments = [f"{__file__}::Test{report}", "-qx", "--tb=no", "-p", "no:cacheprovider"]
    ended = processes.run(["-c", RUN_MUTATED, mutant, *arguments], cwd=processes.ROOT)
    assert ended.returncode == pytest.ExitCode.TESTS_FAILED, ended.stdout + ended.stderr


def test_every_report_has_a_mutant():
    reports = {name.removeprefix("Test") for name in globals() if name.startswith("Test")}
    assert {re.findall(r"\d+", mutant.stem)[0] for mutant in MUTANTS} == reports
    assert len(reports) == 5
