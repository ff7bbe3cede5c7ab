"""The same numbers elsewhere in memory, and other numbers in memory that is not read."""

import dataclasses

import torch
from attn_contract.rules import BLOCKS
from attn_fuzz.cases import axes
from attn_fuzz.cases.poison import bits
from attn_fuzz.cases.tensors import Step
from attn_fuzz.properties import rules
from attn_fuzz.properties.relation import CallTarget, Outputs, relation, same_bits, variant
from attn_fuzz.properties.slots import elements, rows_of_slots, slots_of_selected_keys, used_entries, with_rows

# A finite number that changes outputs if it is used. The unused memory of a case holds NaN, or another finite number. So do
# slots that no query selects, in half of the cases (`Case.recycled`).
GARBAGE = -7.0


@relation(
    "block permutation",
    says="Blocks at other places of the cache, which the block table names, give the same output.",
    rules=rules.ANY_ORDER,
    applies="caches of two blocks or more",
)
def block_permutation(step: Step, call_target: CallTarget) -> str | None:
    if step.raw is None or step.view is None or step.batch.block_table is None or step.view.num_blocks < 2:
        return None
    device = step.q.device
    moved = torch.arange(step.view.num_blocks, device=device).flip(0)
    raw = step.raw.clone()
    for places in elements(step.view, device):
        bits(raw)[places[moved]] = bits(step.raw)[places]
    scales = axes.taken(step.layer, step.layer, {BLOCKS: moved.argsort()})
    table = step.batch.block_table
    inside = table.long().clamp(0, step.view.num_blocks - 1)
    table = torch.where(used_entries(step), moved[inside].int(), table)
    batch = dataclasses.replace(step.batch, block_table=table)
    layer = dataclasses.replace(step.layer, **scales)
    return same_bits(Outputs.of(step), Outputs.of(variant(step, call_target, raw=raw, batch=batch, layer=layer)))


@relation(
    "garbage",
    says="Other contents of unused slots, of slots that no query selects, of unused entries of a wider block table and of "
    "rows that no request owns change nothing.",
    rules=rules.ANY_ORDER,
)
def garbage(step: Step, call_target: CallTarget) -> str | None:
    owned = int(step.batch.query_start_loc[-1])
    q = step.q.clone()
    q[owned:] = GARBAGE
    unused = ~slots_of_selected_keys(step)
    k, v = (rows.clone() for rows in rows_of_slots(step))
    for rows in (k, v):
        bits(rows)[unused] = bits(torch.tensor(GARBAGE, device=q.device).to(rows.dtype).reshape(1))
    changes = {"q": q, **with_rows(step, k, v)}
    if step.batch.block_table is not None and step.view is not None:
        scales = {
            name: torch.where(unused.view(scale.shape[:2])[..., None], GARBAGE, scale)
            for name, scale in axes.taken(step.layer, step.layer, {BLOCKS: slice(None)}).items()
        }
        table = torch.where(used_entries(step), step.batch.block_table, step.view.num_blocks + 1)
        wider = torch.cat([table, table.new_full((len(table), 1), -2)], dim=1)
        changes |= {
            "batch": dataclasses.replace(step.batch, block_table=wider),
            "layer": dataclasses.replace(step.layer, **scales),
        }
    return same_bits(Outputs.of(step), Outputs.of(variant(step, call_target, **changes)))
