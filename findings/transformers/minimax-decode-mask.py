"""transformers: MiniMax decodes with a mask of one entry for all keys, so that padding changes a request's logits.

From the second step of `generate` on, the softmax layers of MiniMax get a mask [B, 1, 1, 1] where there are several keys (seen
in 5.24). It is the entry of the first key, which broadcasts: a request that is padded on its left has False there. `eager` adds
the lowest number to each logit, which hides nothing, so that the request attends to its padding, too; `sdpa` hides every key.

The model below is small and random. The script prints by how much the logits of a request differ, by step, between a call of
its own and one in which it is padded beside a longer request. It needs only torch and transformers, and no GPU. It exits with
1 where the finding shows, with 0 where it does not, and with 2 where it cannot run.
"""

import sys


def cannot_run(kind, error, trace):
    sys.__excepthook__(kind, error, trace)
    sys.exit(2)


sys.excepthook = cannot_run

import torch  # noqa: E402
import transformers  # noqa: E402

ALONE = torch.tensor([[7, 8, 9]])
PADDED = torch.tensor([[0, 0, 0, 0, 7, 8, 9], [11, 12, 13, 14, 15, 16, 17]])
MAX_DIFFERENCE = 1e-3
"""Rounding explains no larger difference of logits."""


def minimax(implementation):
    torch.manual_seed(0)
    config = transformers.MiniMaxConfig(
        num_hidden_layers=2, hidden_size=32, intermediate_size=32, num_attention_heads=4, num_key_value_heads=2, head_dim=16,
        num_local_experts=2, vocab_size=96, pad_token_id=0, bos_token_id=1, eos_token_id=95, block_size=8,
        layer_types=["linear_attention", "full_attention"],
    )  # fmt: skip
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation=implementation).eval()
    for name, weights in model.named_parameters():
        if "lm_head" in name:
            weights.data.normal_()
        elif "v_proj" in name or "o_proj" in name:
            weights.data *= 8
    return model


options = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False, "return_dict_in_generate": True, "output_logits": True}
wrong = False
print(f"transformers {transformers.__version__}")
for implementation in ("eager", "sdpa"):
    model = minimax(implementation)
    alone = model.generate(ALONE, attention_mask=torch.ones_like(ALONE), **options)
    beside = model.generate(PADDED, attention_mask=(PADDED != 0).long(), **options)
    differ = [(one[0] - other[0]).abs().max().item() for one, other in zip(alone.logits, beside.logits, strict=True)]
    print(implementation, "logits differ by", *(f"{one:.2g}" for one in differ))
    wrong |= max(differ) > MAX_DIFFERENCE
sys.exit(int(wrong))
