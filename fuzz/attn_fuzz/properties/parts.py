"""Attention to two parts of the keys, merged by the parts' LSEs, is attention to all keys."""

import dataclasses

import torch
from attn_contract import AttentionType
from attn_fuzz.cases.tensors import Step
from attn_fuzz.properties import rules
from attn_fuzz.properties.relation import CallTarget, ErrorBound, Outputs, causal_flags, close, relation, request_rows, variant
from attn_fuzz.properties.slots import without_first_blocks


@relation(
    "split keys",
    says="Attention to two parts of the keys, merged by their LSEs, is attention to all keys; the sinks join one of the parts.",
    rules=rules.OF_PARTS,
    applies="steps with a cache and an LSE, without quantized outputs; contexts of a block or more",
)
def split_keys(step: Step, call_target: CallTarget, error: ErrorBound) -> str | None:
    blocks = _blocks_of_first_part(step)
    if step.lse is None or step.layer.output_scale is not None or not any(blocks):
        return None
    second = variant(step, call_target, batch=without_first_blocks(step, blocks))
    a, b = Outputs.read(_first_part(step, blocks, call_target)), Outputs.read(second)
    # a bound of the parts too, because they see fewer keys
    bound = error(step)
    assert a.lse is not None
    assert b.lse is not None
    assert bound.lse is not None
    lse = torch.logaddexp(a.lse, b.lse)
    at = lse.masked_fill(lse.isinf(), 0.0)
    share_a, share_b = (torch.exp(part - at)[..., None] for part in (a.lse, b.lse))
    merged = Outputs(share_a * a.out + share_b * b.out, lse)
    # a share is a logistic function of the LSEs' difference, whose slope is at most 1/4
    shift = bound.lse[..., None] / 2 * (a.out - b.out).abs()
    return close(Outputs.read(step), merged, Outputs(2 * bound.out + shift, 2 * bound.lse))


def _blocks_of_first_part(step: Step) -> list[int]:
    """For each request, how many blocks the first part has: about half of the blocks that all queries of the request see."""
    if step.view is None:
        return []
    blocks = []
    flags = causal_flags(step.batch) if step.layer.attn_type is AttentionType.DECODER else [False] * step.batch.num_requests
    for (start, end), seq_len, is_causal in zip(request_rows(step.batch), step.batch.seq_lens.tolist(), flags, strict=True):
        whole = max(0, seq_len - (end - start) * is_causal) // step.view.block_size
        blocks.append((whole + 1) // 2 if start < end else 0)
    return blocks


def _first_part(step: Step, blocks: list[int], call_target: CallTarget) -> Step:
    """Attend to the first part of the keys, without sinks. Every query sees all of these keys, so the step is not causal."""
    assert step.view is not None
    keys = torch.tensor(blocks, dtype=torch.int32, device=step.q.device) * step.view.block_size
    batch = dataclasses.replace(step.batch, seq_lens=keys, causal=False)
    return variant(step, call_target, batch=batch, layer=dataclasses.replace(step.layer, sinks=None))
