"""Other calls of transformers than generation, and what is refused by name."""

import functools
import re
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from attn_contract import ContractError, UnsupportedError

pytest.importorskip("transformers", "5.20", reason="needs transformers: pip install 'attn-parity[transformers]'")

import attn_reference
import attn_transformers
import transformers
from attn_transformers.arguments import arguments_of
from attn_transformers.attention import attention
from transformers.models.gemma3 import modeling_gemma3

from tests.plugins.tiny_models import prompts, tiny
from tests.support import processes

BOUND = 1e-5
GENERATOR = torch.Generator().manual_seed(0)
IDS = torch.randint(4, 64, (1, 15), generator=GENERATOR)
PACKED = {"input_ids": IDS, "position_ids": torch.tensor([[*range(6), *range(9)]]), "use_cache": False}
WITH_A_HOLE = {"input_ids": IDS, "attention_mask": torch.tensor([[1] * 5 + [0] + [1] * 9])}


def test_an_import_brings_no_transformers_and_no_fuzzer():
    code = "import sys, attn_transformers; sys.exit(bool({'transformers', 'hypothesis', 'msgspec'} & {*sys.modules}))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    ("missing", "call", "words"),
    [
        ("transformers", "register()", "this needs transformers, which is missing: pip install 'attn-parity[transformers]'"),
        (
            "msgspec",
            "recording('calls', 'sdpa').__enter__()",
            "this needs msgspec, which is missing: pip install 'attn-parity[fuzz]'",
        ),
    ],
)
def test_a_missing_extra_is_named(missing, call, words, tmp_path):
    code = f"import sys; sys.modules[{missing!r}] = None; import attn_transformers; attn_transformers.{call}"
    ended = processes.run(["-c", code], cwd=tmp_path)
    assert ended.stderr.splitlines()[-1] == f"ModuleNotFoundError: {words}"


pytestmark = pytest.mark.usefixtures("registered")


def test_a_name_that_somebody_else_registered_is_refused(monkeypatch):
    monkeypatch.setitem(transformers.AttentionInterface._global_mapping, "attn_parity", logits_of)
    with pytest.raises(ContractError, match="got 'attn_parity', registered already as <function logits_of"):
        attn_transformers.register()


def logits_of(model, implementation, inputs) -> torch.Tensor:
    """The logits of the tokens that are no padding."""
    model.set_attn_implementation(implementation)
    logits = model(**inputs).logits
    mask = inputs.get("attention_mask")
    return logits[mask.bool()] if isinstance(mask, torch.Tensor) else logits.flatten(0, 1)


UNUSUAL = {
    "packed": (PACKED, ["mistral", "gemma2", "llama4"]),
    "a hole": (WITH_A_HOLE, ["mistral", "gemma2", "llama4", "bloom"]),
    "padding behind": (prompts((7, 4, 9), padded="right"), ["mistral", "gemma2", "llama4", "bloom", "mpt"]),
}


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind, (_, names) in UNUSUAL.items() for name in names])
def test_unusual_batches_agree_with_eager(kind, name):
    inputs, model = UNUSUAL[kind][0], tiny(name)
    torch.testing.assert_close(logits_of(model, "attn_parity", inputs), logits_of(model, "eager", inputs), rtol=0, atol=BOUND)


def test_a_decoder_that_looks_both_ways():
    model = tiny("mistral")
    model.config.is_causal = False
    inputs = {"input_ids": IDS, "use_cache": False}
    mine, theirs = (logits_of(model, implementation, inputs) for implementation in ("attn_parity", "eager"))
    torch.testing.assert_close(mine, theirs, rtol=0, atol=BOUND)
    model.config.is_causal = True
    assert (logits_of(model, "attn_parity", inputs) - theirs).abs().max() > 100 * BOUND


def test_images_see_both_ways():
    """A prompt with an image of 6 tokens, wider than the window of 4."""
    model, tokens = tiny("gemma3"), torch.tensor([[0, 0, 1, 1, 1, 1, 1, 1, 0, 1, 1, 1, 0, 0, 0]])

    def logits(implementation):
        model.set_attn_implementation(implementation)
        embedded = model.get_input_embeddings()(IDS)
        blocks = modeling_gemma3.get_block_sequence_ids_for_mask(tokens)
        # by position: no attention_mask, no cache, whose name is another one since transformers 5.24, and no position_ids
        masks = modeling_gemma3.create_masks_for_vision_model(model.config, embedded, None, None, None, blocks)
        return model(inputs_embeds=embedded, attention_mask=masks, use_cache=False).logits

    torch.testing.assert_close(logits("attn_parity"), logits("eager"), rtol=0, atol=BOUND)


def test_half_precision_is_as_near_as_its_numbers_allow():
    model = tiny("bloom").bfloat16()
    inputs = prompts((7, 4, 9))
    mine, theirs = (logits_of(model, implementation, inputs) for implementation in ("attn_parity", "eager"))
    torch.testing.assert_close(mine, theirs, rtol=0, atol=2**-4)


def test_without_a_mask_a_causal_layer_is_a_prompt_for_sdpa_and_unmasked_for_eager():
    """The prompt of an empty static cache has more keys than queries."""
    query, keys = (1, 2, 3, 4), (1, 2, 5, 4)
    layer, q, k = SimpleNamespace(is_causal=True), torch.randn(query), torch.randn(keys)
    for options, expected in (({}, torch.ones(3, 5).tril().bool()), ({"none_is_causal": False}, torch.ones(3, 5).bool())):
        assert torch.equal(arguments_of(layer, q, k, k, None, **options).seen[0], expected)
    one_query = arguments_of(layer, q[:, :, :1], k, k, None)
    assert one_query.seen.all()


@pytest.fixture
def without_masks(monkeypatch):
    """A name whose mask function is not registered: transformers makes no mask for it, whatever is padded."""
    named = functools.partial(attention, attn_reference)
    monkeypatch.setitem(transformers.AttentionInterface._global_mapping, "mine", named)
    return "mine"


MISSING = (
    "attention_mask: got None, as always while no mask function is registered for attn_implementation='mine', "
    "expected one, as after transformers.AttentionMaskInterface.register("
)


def test_a_call_for_which_transformers_makes_no_mask_is_refused(without_masks):
    model = tiny("mistral")
    model.set_attn_implementation(without_masks)
    with pytest.raises(ContractError, match=re.escape(MISSING)):
        model(**WITH_A_HOLE)


def test_a_recording_does_not_judge_by_a_mask_that_transformers_does_not_make(without_masks, monkeypatch, tmp_path):
    """It called the padding that the function had not been told of an error of the function."""
    theirs = transformers.integrations.sdpa_attention.sdpa_attention_forward
    monkeypatch.setitem(transformers.AttentionInterface._global_mapping, without_masks, theirs)
    model = tiny("mistral")
    model.set_attn_implementation(without_masks)
    with (
        pytest.warns(UserWarning, match=f"mine was not judged: {re.escape(MISSING)}"),
        pytest.warns(UserWarning, match="NO CALL of attn_implementation='mine' WAS JUDGED"),
        attn_transformers.recording(tmp_path, without_masks) as recording,
    ):
        model(**WITH_A_HOLE)
    assert (recording.judged, recording.wrong) == (0, 0)
    assert [reason.startswith(MISSING) for reason in recording.not_judged] == [True]


class TestRefused:
    """One call by itself: a layer of 2 heads of size 4, 3 queries and 3 keys."""

    def call(self, mask=None, **arguments):
        q, k, v = (torch.randn(1, 2, 3, 4, generator=GENERATOR) for _ in range(3))
        v = arguments.pop("value", v)
        return attention(attn_reference, SimpleNamespace(is_causal=True), q, k, v, mask, **arguments)[0]

    def test_known_arguments_pass(self):
        assert self.call(position_ids=torch.arange(3), use_cache=True, unknown=None, output_attentions=False).shape == (
            1,
            3,
            2,
            4,
        )

    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            ({"rel_pos": torch.zeros(2, 3)}, r"rel_pos \(a tensor \(2, 3\)\) not supported: no rule of the contract is known"),
            ({"lookback": 3}, r"lookback \(3\) not supported"),
            ({"output_attentions": True}, r"output_attentions \(True\) not supported: the kernels do not return weights"),
            ({"head_mask": torch.ones(2)}, "head_mask"),
            ({"dropout": 0.1}, r"dropout=0.1 not supported: .* call model.eval\(\)"),
            ({"position_bias": torch.randn(1, 2, 3, 3)}, "it is not ALiBi"),
            ({"mask": torch.randn(1, 1, 3, 3)}, "it is not ALiBi"),
            ({"mask": torch.ones(1, 1, 3, 3, dtype=torch.int64)}, "an attention mask of torch.int64"),
            ({"mask": torch.stack([torch.ones(3, 3), torch.eye(3)])[None].bool()}, "an attention mask that differs by head"),
            (
                {"position_bias": -torch.arange(3.0)[None, None, None], "s_aux": torch.zeros(2)},
                "sinks beside a position_bias not supported",
            ),
        ],
        ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
    )
    def test_an_argument_is_refused_by_name(self, arguments, words):
        with pytest.raises(UnsupportedError, match=words):
            self.call(**arguments)

    def test_sinks_that_a_layer_keeps_to_itself(self):
        layer, q = SimpleNamespace(is_causal=True, sinks=torch.zeros(2)), torch.zeros(1, 2, 3, 4)
        with pytest.raises(UnsupportedError, match="a layer's own sinks not supported: it does not pass them as s_aux"):
            attention(attn_reference, layer, q, q, q, None)

    def test_half_of_the_bounds_of_packed_requests(self):
        with pytest.raises(ContractError, match="cu_seq_lens_q, cu_seq_lens_k: got one of them, expected both or none"):
            self.call(cu_seq_lens_q=torch.tensor([0, 3]))

    def test_values_of_other_tokens(self):
        with pytest.raises(ContractError, match=r"value: got shape \(1, 2, 2, 4\), expected \(1, 2, 3, 'the width of V'\)"):
            self.call(value=torch.zeros(1, 2, 2, 4))

    @pytest.mark.parametrize(
        ("mask", "words"),
        [
            (torch.ones(1, 3).bool(), r"attention_mask: got shape \(1, 3\), expected None or a tensor of four dimensions"),
            (torch.ones(1, 1, 3, 4).bool(), r"attention_mask: got shape \(1, 1, 3, 4\), expected one that broadcasts to"),
            (torch.ones(1, 1, 3, 1).bool(), r"got shape \(1, 1, 3, 1\), .* with an entry for each key"),
        ],
        ids=["two dimensions", "another length", "one entry for all keys"],
    )
    def test_masks_of_other_shapes(self, mask, words):
        with pytest.raises(ContractError, match=words):
            self.call(mask)

    def test_gradients_are_refused(self):
        model = tiny("mistral").requires_grad_(True)
        model.set_attn_implementation("attn_parity")
        with torch.enable_grad(), pytest.raises(UnsupportedError, match=r"a gradient not supported: .* torch.no_grad"):
            model(IDS)

    @pytest.mark.parametrize(
        ("model", "config"),
        [
            (transformers.XLNetModel, transformers.XLNetConfig(vocab_size=8, d_model=8, n_layer=1, n_head=2, d_inner=8)),
            (
                transformers.FalconModel,
                transformers.FalconConfig(vocab_size=8, hidden_size=8, num_hidden_layers=1, num_attention_heads=2),
            ),
        ],
        ids=["XLNet", "Falcon"],
    )
    def test_models_that_attend_by_code_of_their_own(self, model, config):
        config._attn_implementation = "attn_parity"
        with pytest.raises(UnsupportedError, match=f"{model.__name__} not supported: it attends by code of its own"):
            model(config)
        config._attn_implementation = "eager"
        with pytest.raises(UnsupportedError, match=f"{model.__name__} not supported: it attends by code of its own"):
            model(config).set_attn_implementation("attn_parity")

    def test_alibi_across_a_hole(self):
        """MPT counts the hidden token in its distances. The contract's requests have no such token."""
        with pytest.raises(UnsupportedError, match="it is not ALiBi of the tokens that are seen"):
            logits_of(tiny("mpt"), "attn_parity", WITH_A_HOLE)

    def test_relative_biases_of_a_model(self):
        config = transformers.T5Config(vocab_size=8, d_model=8, num_layers=1, num_heads=2, d_kv=4, d_ff=8)
        config._attn_implementation = "attn_parity"
        model = transformers.T5Model(config).eval()
        with pytest.raises(
            UnsupportedError, match="this position_bias, or mask that is added to logits, not supported: it is not"
        ):
            model(input_ids=torch.tensor([[1, 2, 3, 4]]), decoder_input_ids=torch.tensor([[1]]))


def test_a_bidirectional_batch_with_more_keys_than_queries_reads_its_own_keys():
    """As a static cache gives them: two rows of three queries, and eight keys of which the last ones are hidden."""
    query = torch.randn(2, 2, 3, 8, generator=GENERATOR)
    key, value = torch.randn(2, 2, 2, 8, 8, generator=GENERATOR)
    mask = (torch.arange(8) < 3).expand(2, 1, 3, 8)
    found, _ = attention(attn_reference, SimpleNamespace(is_causal=False), query, key, value, mask)
    expected = torch.nn.functional.scaled_dot_product_attention(query, key, value, mask)
    torch.testing.assert_close(found, expected.transpose(1, 2), rtol=0, atol=BOUND)
