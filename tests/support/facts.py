"""Facts of a compiled launch that is within every budget."""

from attn_binaries.facts import Facts

GOOD = Facts(
    vgprs=128,
    agprs=0,
    sgprs=40,
    vgpr_spills=0,
    sgpr_spills=0,
    sgpr_spills_in_loops=0,
    lost_addresses=0,
    lds_bytes=16 << 10,
    lds_limit=64 << 10,
    waves=2,
    matrix_instructions=80,
    tf32_instructions=0,
    widest_load=16,
    narrow_products=0,
    fused_multiply_adds=50,
)
