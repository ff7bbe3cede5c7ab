"""FLEX_ATTENTION: the blocks that a query visits lack those of its bidirectional range ahead of it, and before its window.

An image of 48 tokens that see each other both ways, in 3 blocks of 16 slots, and a window of 16 tokens. FlexAttentionMetadata
makes the block mask and its mask_mod. The numbers are those of keys that queries 0, 16 and 32 see: mask_mod shows them, and the
block mask lists their blocks. A compiled flex_attention visits no other block.
"""

import torch
from kernels import DEVICE, compare, ints, load

TOKENS, BLOCK_SIZE, BLOCKS = 48, 16, 4  # block 0 is vLLM's null block
flex = load("vllm.v1.attention.backends.flex_attention")
table, seq_lens, starts = ints([1, 2, 3]), ints(TOKENS), ints(0, TOKENS)
metadata = flex.FlexAttentionMetadata(
    causal=True,
    num_actual_tokens=TOKENS,
    max_query_len=TOKENS,
    query_start_loc=starts,
    query_start_loc_cpu=starts.cpu(),
    max_seq_len=TOKENS,
    seq_lens=seq_lens,
    block_table=table,
    slot_mapping=None,
    total_cache_tokens=BLOCKS * BLOCK_SIZE,
    block_size=BLOCK_SIZE,
    max_possible_sequence_length=TOKENS,
    num_reqs=1,
    physical_to_logical=flex.physical_to_logical_mapping(table, seq_lens, BLOCK_SIZE, BLOCKS),
    decode_offset=ints(0),
    num_blocks_per_seq=ints(3),
    persistent_kv_indices=torch.empty(3, 16 * 3, dtype=torch.int32, device=DEVICE),
    persistent_kv_num_blocks=ints(0, 0, 0),
    persistent_doc_ids=torch.empty(TOKENS, dtype=torch.int32, device=DEVICE),
    sliding_window=16,
    mm_prefix_range={0: [(0, TOKENS - 1)]},
)
block_mask = metadata._build_block_mask_direct()
queries, slots = torch.arange(0, TOKENS, 16, device=DEVICE), torch.arange(BLOCKS * BLOCK_SIZE, device=DEVICE)
zero = torch.zeros((), dtype=torch.int32, device=DEVICE)  # of the batch, and of the heads
shown = block_mask.mask_mod(zero, zero, *torch.meshgrid(queries, slots, indexing="ij"))
listed = block_mask.to_dense()[0, 0, :, :BLOCKS].bool().repeat_interleave(BLOCK_SIZE, dim=1)
compare(torch.full((3,), TOKENS, device=DEVICE), (shown & listed).sum(dim=1))
