"""transformers: `generate_batch` serves Gemma 2 without its soft cap of logits, and says nothing.

Gemma 2 (models/gemma2/modeling_gemma2.py:275) hands `softcap` to its function of attention, and so do T5Gemma, VaultGemma and
VideoPrism. What becomes of the argument depends on the name of the function:

    eager             uses it
    flex_attention    uses it
    sdpa              dropped it until transformers 5.20, where it was Gemma 2's default. Since 5.21 it raises a ValueError
    paged|eager       takes it among **kwargs, and drops it

Continuous batching (generation/continuous_batching/continuous_api.py:776) replaces "eager", which has been Gemma 2's default
since 5.21, by "paged|eager", unless FlashAttention is there. So a model that is loaded and served by defaults has no cap.
integrations/eager_paged.py has no line about a cap in 5.17, 5.20, 5.23 and 5.24, the newest that was read.

The model below is small and random, with logits far above its cap. The script prints what `generate` makes of each prompt, and
what `generate_batch` makes of all of them. It needs only torch and transformers, and no GPU. It exits with 1 where the finding
shows, with 0 where it does not, and with 2 where it cannot run.
"""

import sys


def cannot_run(kind, error, trace):
    sys.__excepthook__(kind, error, trace)
    sys.exit(2)


sys.excepthook = cannot_run

import torch  # noqa: E402
import transformers  # noqa: E402

PROMPTS = [[5, 6, 7, 8, 9], [30, 31, 32, 33, 34, 35, 36, 37, 38], [50, 40, 41, 42, 43, 44, 45]]
SERVED = transformers.ContinuousBatchingConfig(block_size=8, num_blocks=32, max_batch_tokens=32, auto_switch_to_flash=False)


def gemma(soft_cap):
    torch.manual_seed(0)
    config = transformers.Gemma2Config(
        vocab_size=64, hidden_size=64, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        head_dim=16, query_pre_attn_scalar=16, attn_logit_softcapping=soft_cap, pad_token_id=0, eos_token_id=None,
    )  # fmt: skip
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    for name, weights in model.named_parameters():
        if "q_proj" in name or "k_proj" in name:
            weights.data *= 30
        elif "v_proj" in name or "o_proj" in name:
            weights.data *= 10
    return model


def one_by_one(model, options):
    return [model.generate(torch.tensor([prompt]), generation_config=options)[0, len(prompt) :].tolist() for prompt in PROMPTS]


options = transformers.GenerationConfig(max_new_tokens=6, do_sample=False, pad_token_id=0, eos_token_id=-1)
model = gemma(soft_cap=0.01)
expected = one_by_one(model, options)
served = model.generate_batch(PROMPTS, generation_config=options, continuous_batching_config=SERVED, progress_bar=False)
got = [request.generated_tokens for request in served.values()]
print(f"transformers {transformers.__version__}, attn_implementation={model.config._attn_implementation!r}")
print("expected", *expected)
print("got     ", *got)
print("without a cap, one by one, the model makes what was got:", one_by_one(gemma(soft_cap=None), options) == got)
sys.exit(0 if got == expected else 1)
