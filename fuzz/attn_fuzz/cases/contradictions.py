"""Contradictions in a case: fields that exclude each other, and layouts that cannot share an allocation."""

import bisect

from attn_contract import RULES, AttentionType, ContractError, Layout, PhysicalOrder
from attn_contract.layer import SMALLEST_NORMAL
from attn_contract.rules import check_together
from attn_fuzz.cases.case import CHANGES, MAX_ELEMENTS, Cache, Case, CaseError, Rope, num_elements, slot_bits

ROWS = (Layout.BLOCKS_FIRST_NHD, Layout.BLOCKS_FIRST_HND, Layout.KV_FIRST_NHD, Layout.KV_FIRST_HND)
X_PACKED = (Layout.X_PACKED, Layout.SHUFFLED)


def check(case: Case) -> None:
    """Check that a case is a valid call of the contract.

    Raises:
        CaseError: fields contradict each other, or the tensors would be too large. The message begins with the fields' names.
    """
    if (
        num_elements(case) > MAX_ELEMENTS
    ):  # checked first: the checks below go through all rows, and need time if there are many
        raise CaseError(f"case: its tensors would hold more than {MAX_ELEMENTS} elements")
    if (case.cache is not None) != case.attn_type.reads_cache:
        raise CaseError(f"cache: {case.attn_type} {'needs one' if case.attn_type.reads_cache else 'has none'}")
    if case.scale and not SMALLEST_NORMAL <= abs(case.scale) <= 1e6:
        raise CaseError(f"scale: got {case.scale}, expected 0, or a magnitude between 2^-126 and 1e6")
    if case.logits_soft_cap is not None and not SMALLEST_NORMAL <= case.logits_soft_cap <= 1e6:
        raise CaseError(f"logits_soft_cap: got {case.logits_soft_cap}, expected null, or a number between 2^-126 and 1e6")
    if unknown := [name for name in case.earlier if name not in CHANGES]:
        raise CaseError(f"earlier: got {unknown[0]!r}, expected names among {', '.join(CHANGES)}")
    _check_rules(case)
    flags = {request.causal for request in case.requests}
    if case.attn_type is not AttentionType.DECODER and (True in flags or case.per_request_causal):
        raise CaseError(f"requests.causal: {case.attn_type} is never causal")
    if len(flags) > 1 and not case.per_request_causal:
        raise CaseError("requests.causal: they differ, so per_request_causal must be true")
    rows = case.query_start_loc[-1]
    if any(row >= rows for row in case.unwritten):
        raise CaseError(f"unwritten: a row past the last query row ({rows - 1})")
    if case.saturated and (case.cache is None or case.cache.dtype is None or not case.writes or case.rope is not None):
        raise CaseError("saturated: only a write to a quantized cache saturates, and a rotation makes NaN of infinities")
    if case.q_scale is not None:
        _check_float8_queries(case)
    _check_v_head_size(case)
    if case.cache is None:
        _check_dense(case)
    else:
        _check_allocation(case, case.cache)
        _check_blocks(case, case.cache)
    if case.rope is not None:
        _check_rope(case, case.rope)
    _check_values(case)


def contradiction(case: Case) -> str | None:
    """The error message of `check`; None if the case is valid."""
    try:
        check(case)
    except CaseError as error:
        return str(error)
    return None


def _check_rules(case: Case) -> None:
    for name in case.rules:
        if case.attn_type not in RULES[name].attn_types:
            raise CaseError(f"{name}: {case.attn_type} has none: {RULES[name].why_not}")
    try:
        check_together(case.rules)
    except ContractError as error:
        raise CaseError(str(error)) from None


def _check_float8_queries(case: Case) -> None:
    """Check the requirements of Layer and of a call of attention on q_scale."""
    if case.cache is None or case.cache.dtype in (None, "int8") or case.cache.layout.latent_format is not None:
        raise CaseError("q_scale: null, or a cache of a float8 type, without scales in latent rows")
    if case.rope is not None or case.fused_qkv:
        raise CaseError("q_scale: null where q is rotated in place or lies beside k and v, which are of another dtype")


def _check_v_head_size(case: Case) -> None:
    """Check head_size_v as Layer does: dense V has any width, and so has V in the rows of CONTENT_PACKED."""
    if case.cache is None or case.cache.layout.takes_two_widths:
        if case.head_size_v == case.head_size:
            raise CaseError(f"head_size_v: got {case.head_size_v}, expected null, or another width than head_size")
        return
    if (case.head_size_v is not None) != case.has_latent_cache:
        expected = "a width: layout {} is latent" if case.has_latent_cache else "null: layout {} is not latent"
        raise CaseError(f"head_size_v: got {case.head_size_v}, expected {expected.format(case.cache.layout)}")
    if case.has_latent_cache and case.attn_type is not AttentionType.DECODER:
        raise CaseError(f"layout: no encoder's keys are latent, and {case.attn_type} reads an encoder's")
    if case.head_size_v is not None and (case.head_size_v > case.head_size or case.num_kv_heads > 1):
        raise CaseError("head_size_v: a latent cache has one KV head, and head_size_v is at most head_size")


def _check_dense(case: Case) -> None:
    for r, request in enumerate(case.requests):
        if request.seq_len != request.query_len:
            raise CaseError(f"requests[{r}].seq_len: without a cache it equals query_len ({request.query_len})")
        if request.blocks:
            raise CaseError(f"requests[{r}].blocks: without a cache there are none")
    if not case.writes or case.unwritten or case.recycled or case.finite_slots or case.ordinary_writes:
        raise CaseError("writes, unwritten, recycled, finite_slots, ordinary_writes: expected defaults without a cache")


def _check_allocation(case: Case, cache: Cache) -> None:
    """Check the layout, dtype and scales of the cache, and its other views."""
    head_unit, block_unit = cache.layout.packing_multiples(case.itemsize)
    unit = cache.layout.stride_alignment
    is_unaligned = cache.padding % unit or cache.slot_padding % unit
    if case.head_size % head_unit or cache.block_size % block_unit or is_unaligned:
        sizes = f"a head_size that is a multiple of {head_unit} and a block_size that is a multiple of {block_unit}"
        rest = f", and paddings that are multiples of {unit}" if unit > 1 else ""
        raise CaseError(f"cache.layout: {cache.layout} needs {sizes}{rest}")
    if case.selection_unit is not None and case.selection_unit % block_unit:
        raise CaseError(f"selection_unit: in layout {cache.layout} a multiple of {block_unit}")
    if cache.layout.has_inline_scales and cache.dtype is None:
        raise CaseError(f"cache.dtype: {cache.layout} holds scales, so it is quantized")
    if (cache.scales is not None) != (cache.dtype is not None and not cache.layout.has_inline_scales):
        raise CaseError("cache.scales: expected null exactly if the cache is not quantized, or each row has its own")
    if cache.layout.latent_format is not None:
        _check_scaled_rows(case, cache.layout)
    if cache.dtype == "int8" and cache.scales in ("tensor", "head"):
        raise CaseError("cache.scales: int8 has a scale for each token")
    if cache.layout.has_latent_value and (cache.planes or cache.dtype == "int8" or cache.scales in ("head", "token")):
        raise CaseError("cache: a latent cache has no plane of V, no int8, and no scales of heads or tokens")
    if cache.slot_padding and (cache.layout.has_dense_pages or cache.holds_content_rows):
        raise CaseError("cache.slot_padding: only rows of a latent cache, or of K and V apart, have it, and no dense pages")
    if not cache.holds_content_rows and (cache.order, cache.num_layers) != (PhysicalOrder.LBHNC, 1):
        raise CaseError("cache.order, cache.num_layers: only content-packed allocations have them")
    if cache.layer >= cache.num_layers:
        raise CaseError(f"cache.layer: got {cache.layer}, expected less than num_layers ({cache.num_layers})")
    if cache.holds_content_rows and cache.planes:
        raise CaseError("cache.planes: rows that hold K and V are in no plane")
    if cache.writer is not None and cache.writer not in writers(case, cache):
        raise CaseError(f"cache.writer: {cache.writer} cannot address the elements of {cache.layout}")
    if cache.neighbour is not None and cache.neighbour not in neighbours(case, cache):
        raise CaseError(f"cache.neighbour: {cache.neighbour} cannot have the footprint of {cache.layout} here")


def _check_scaled_rows(case: Case, layout: Layout) -> None:
    try:
        layout.check_widths(case.head_size, case.head_size_v)
    except ContractError as error:
        raise CaseError(str(error)) from None
    if case.dtype != "bfloat16":
        raise CaseError(f"dtype: bfloat16 in layout {layout}, the only dtype beside its rows")


def writers(case: Case, cache: Cache) -> tuple[Layout, ...]:
    """Layouts that can address the same elements as the cache's layout (`attn_contract.same_elements`)."""
    if cache.layout in X_PACKED:
        return X_PACKED if cache.block_size == 16 // case.itemsize else (cache.layout,)
    if cache.layout.has_inline_scales or case.head_size_v is not None:
        return (cache.layout,)
    return ROWS if cache.planes or cache.slot_padding else (*ROWS, Layout.CONTENT_PACKED)


def neighbours(case: Case, cache: Cache) -> tuple[Layout, ...]:
    """Layouts that can have the same footprint as the cache's layout (`attn_contract.same_footprint`)."""
    if cache.layout.has_inline_scales or case.head_size_v is not None or cache.slot_padding:
        return (cache.layout,)
    head_unit, block_unit = Layout.X_PACKED.packing_multiples(case.itemsize)
    fits = case.head_size % head_unit == 0 and cache.block_size % block_unit == 0 and not scatters_heads(case, cache)
    return (*ROWS, *(X_PACKED if fits else ()), *(() if cache.planes else (Layout.CONTENT_PACKED,)))


def scatters_heads(case: Case, cache: Cache) -> bool:
    """True if other blocks or layers lie between the heads of one block."""
    between = {PhysicalOrder.LHBNC: cache.num_blocks > 1 or cache.padding > 0, PhysicalOrder.BHLNC: cache.num_layers > 1}
    return cache.holds_content_rows and case.num_kv_heads > 1 and between.get(cache.order, False)


def _check_rope(case: Case, rope: Rope) -> None:
    if not case.writes or case.has_latent_cache:
        raise CaseError("rope: only steps that write K and V apart have it")
    if rope.rotary_dim % 2 or rope.rotary_dim > case.head_size:
        raise CaseError(f"rope.rotary_dim: got {rope.rotary_dim}, expected an even number, at most head_size")


def _check_values(case: Case) -> None:
    captured = case.values.kind == "captured"
    if (captured, captured) != (case.values.file is not None, case.values.sha256 is not None):
        raise CaseError("values.file, values.sha256: a captured case has both, and no other one has")
    if (captured and case.selection_unit is not None) != (case.selected_width is not None):
        raise CaseError("selected_width: a captured case with a selection has it, and no other one has")
    if captured and case.cache is not None and (case.writes or case.recycled or case.cache.neighbour is not None):
        raise CaseError("writes, recycled, cache.neighbour: off in a captured case, whose cache holds what it held")


def _check_blocks(case: Case, cache: Cache) -> None:
    for r, request in enumerate(case.requests):
        used = -(-case.num_keys(request) // cache.block_size)
        if len(request.blocks) != used:
            num_keys = case.num_keys(request)
            raise CaseError(f"requests[{r}].blocks: got {len(request.blocks)}, expected {used} for {num_keys} keys")
        if any(block >= cache.num_blocks for block in request.blocks):
            raise CaseError(f"requests[{r}].blocks: a block past the cache's last ({cache.num_blocks - 1})")
        if len(set(request.blocks)) != len(request.blocks):
            raise CaseError(f"requests[{r}].blocks: a block twice in one request")
    if case.writes:
        _check_written_once(case, cache)


def _check_written_once(case: Case, cache: Cache) -> None:
    is_decoder, starts, key_unit = case.attn_type is AttentionType.DECODER, case.query_start_loc, case.key_unit or 1
    unwritten: dict[int, list[int]] = {}
    for row in case.unwritten if is_decoder else ():
        r = bisect.bisect_right(starts, row) - 1
        unwritten.setdefault(r, []).append(row - starts[r])
    written: dict[int, int] = {}
    for r, request in enumerate(case.requests):
        first = max(0, request.context_len) // key_unit if is_decoder else 0
        bits_of = slot_bits(request, cache, first, case.num_keys(request))
        for row in unwritten.get(r, ()):
            key, rest = divmod(request.context_len + row + 1, key_unit)
            if key > 0 and not rest:
                bits_of[request.blocks[(key - 1) // cache.block_size]] &= ~(1 << (key - 1) % cache.block_size)
        for block, bits in bits_of.items():
            if written.get(block, 0) & bits:
                raise CaseError("requests.blocks: two requests would write one slot")
            written[block] = written.get(block, 0) | bits
