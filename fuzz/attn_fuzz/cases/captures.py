"""Calls of a running model as cases: a case file, and beside it the tensors of the call as safetensors.

The file holds these tensors, if the case has them. Each is dense:

    q                               [rows, H, D], the rows that requests own
    k, v                            [slots, HK, row] as they are stored, of the slots that hold a key, in their order; a row of
                                    inline scales has its scales too. A latent cache has k alone: v is the beginning of it.
                                    Without a cache [rows, HK, D], and of v the width of V
    k_scale_cache, v_scale_cache    [slots, HK]
    q_scale, k_scale, v_scale       [1] or [HK]
    the tensor of another rule      in the shape of its record's axes: [H] of sinks, [Q, Q] of qq_bias with Q = max_query_len
    selected                        [1 or HK, rows, W], without the last columns if they name no unit
    output_scale                    [1]
    out, lse                        [rows, H, Dv] and [H, rows]: what the call gave, if it was captured too

`out` is kept if it has no more than KEPT_ELEMENTS elements. Slots, rows and table entries that the call does not use are
not in the file. A replay fills them with poison.
"""

import hashlib
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import attn_reference
import msgspec
import safetensors
import safetensors.torch
import torch
from attn_contract import Batch, KVCacheView, Layer, PhysicalOrder
from attn_contract.layouts import K, V
from attn_contract.rules import KV_HEADS, QUERIES, REQUESTS, ROWS, Axis, active_rules, held_rules
from attn_fuzz import inputs, outputs
from attn_fuzz.cases import allocations, axes, case_file, contents
from attn_fuzz.cases.call import Call
from attn_fuzz.cases.case import Cache, Case, CaseError, Float8, Request, Values, num_slots_of_keys, slots_of_keys
from attn_fuzz.cases.poison import DTYPES, bits
from attn_fuzz.errors import InputError

HEADER_BYTES = 1 << 16
KEPT_ELEMENTS = 1 << 24
"""The most elements of an output that is kept: 64 MiB of float32."""
_NAMES = {dtype: name for name, dtype in DTYPES.items()}


class CaptureError(ValueError):
    """No case can represent a call. The message says why."""


def capture(
    call: Call,
    path: str | Path,
    *,
    target: str = "triton",
    requests: Sequence[int] | None = None,
    out: torch.Tensor | None = None,
    lse: torch.Tensor | None = None,
    metadata: dict[str, str] | None = None,
) -> Path:
    """Write a call as a case, with its tensors in a file beside the case. `attn-parity replay` runs the case on any machine.

    Only cache blocks in use are copied, and they get new numbers. The case attends and does not write: its cache holds the
    numbers of the call's cache. Two things are kept of the call's strides: whether K and V lie in two planes, and whether slots
    lie outside heads.

    Args:
        call: tensors on any device.
        path: the file of the case, *.json; the tensors go into a file of the same name, *.safetensors.
        target: name of the target on which `replay` runs the case by default.
        requests: indices of the requests to keep; None keeps all.
        out, lse: what a kernel gave, [T, H, Dv] or [T, H * Dv], and [H, T], to be kept beside the call. An output of more than
            KEPT_ELEMENTS elements is left out.
        metadata: strings to keep in the file of tensors.

    Returns:
        path.

    Raises:
        CaptureError: no case can represent the call, such as one whose tensors are too large.
        ContractError: the call contradicts the contract.
        OSError: a file cannot be written.
    """
    path = Path(path)
    if path.suffix != ".json":
        raise CaptureError(f"path: got {path}, expected a name that ends in .json")
    kept = range(call.batch.num_requests) if requests is None else sorted(set(requests))
    if any(not 0 <= r < call.batch.num_requests for r in kept):
        raise CaptureError(f"requests: got {list(kept)}, expected indices of {call.batch.num_requests} requests")
    unhashed = Values("captured", file=path.with_suffix(".safetensors").name, sha256="0" * 64)
    case, blocks = _case(call, kept, target, unhashed, _dtype(call, out))
    if lse is not None:
        case = msgspec.structs.replace(case, lse=True)
    try:
        case = case_file.loads(case_file.dumps(case))
    except (CaseError, UnicodeEncodeError) as error:
        raise CaptureError(f"no case can represent this call: {error}") from None
    results = _results(call, kept, out, lse)
    data = safetensors.torch.save(_tensors(call, kept, case, blocks) | results, metadata=metadata)
    hashed = msgspec.structs.replace(unhashed, sha256=hashlib.sha256(data).hexdigest())
    outputs.write(path.with_suffix(".safetensors"), data)
    case_file.save(path, msgspec.structs.replace(case, values=hashed))
    return path


def load(case: Case) -> dict[str, torch.Tensor]:
    """The tensors of a captured case, by name, on the CPU: what was given, and `out` and `lse` if they were kept.

    Raises:
        CaseError: the file cannot be read, is larger than the case's tensors, has another hash, or holds other tensors.
    """
    expected, results = _expected(case), _expected_results(case)
    most = HEADER_BYTES + sum(torch.Size(shape).numel() * dtype.itemsize for shape, dtype in (expected | results).values())
    path = Path(case.values.file or "")
    try:
        data = inputs.read_bytes(path, most)
    except InputError as error:
        raise CaseError(f"values.file: {error}, expected the tensors of the case") from None
    if hashlib.sha256(data).hexdigest() != case.values.sha256:
        raise CaseError(f"values.sha256: {path} is not the file that was captured")
    try:
        header = min(int.from_bytes(data[:8], "little"), HEADER_BYTES)
        inputs.check_json(data[8 : 8 + header].decode())  # safetensors would take the last of two tensors of a name
        held = safetensors.torch.load(data)
    except (safetensors.SafetensorError, KeyError, ValueError, InputError) as error:
        raise CaseError(f"values.file: {path} is no safetensors file: {error}") from None
    expected |= {name: what for name, what in results.items() if name in held}
    if held.keys() != expected.keys():
        raise CaseError(f"values.file: {path} holds {', '.join(sorted(held))}, expected {', '.join(sorted(expected))}")
    for name, (shape, dtype) in expected.items():
        got = held[name]
        if (tuple(got.shape), got.dtype) != (shape, dtype):
            raise CaseError(f"values.file: {name} is {got.dtype} {tuple(got.shape)}, expected {dtype} {shape}")
    return held


def metadata(case: Case) -> dict[str, str]:
    """The strings in the file of a captured case's tensors, which `load` has checked."""
    with safetensors.safe_open(case.values.file or "", "pt") as file:
        return file.metadata() or {}


def place(case: Case, cache: Cache, held: dict[str, torch.Tensor], view: KVCacheView, raw: torch.Tensor, layer: Layer) -> None:
    """Put the captured keys and values, and their scales, where the case's cache has them."""
    slots = torch.tensor(slots_of_keys(case, cache), dtype=torch.int64, device=raw.device)
    block, offset = slots // cache.block_size, slots % cache.block_size
    for kv, name in _stored_parts(view):
        bits(raw)[elements_of_slots(view, kv, block, offset)] = bits(held[name].to(raw.device))
    for name in ("k_scale_cache", "v_scale_cache"):
        if name in held:
            layer.tensors[name][block, offset] = held[name].to(raw.device)


def _dtype(call: Call, out: torch.Tensor | None) -> torch.dtype:
    """The dtype of a case: q's, or beside a float8 q the output's, or where that says none, a usual one of models."""
    if call.layer.q_scale is None:
        return call.q.dtype
    return torch.bfloat16 if out is None or call.layer.output_scale is not None else out.dtype


def _case(call: Call, kept: Sequence[int], target: str, values: Values, dtype: torch.dtype) -> tuple[Case, list[int]]:
    """The case, and for each block of its cache the number of that block in the call."""
    layer, batch, rules = call.layer, call.batch, _rules(call)
    starts, seq_lens = batch.query_start_loc.tolist(), batch.seq_lens.tolist()
    causal = batch.causal.tolist() if isinstance(batch.causal, torch.Tensor) else [batch.causal] * batch.num_requests
    ranges = batch.bidirectional_ranges.tolist() if batch.bidirectional_ranges is not None else [[]] * batch.num_requests
    cache, tables, blocks = None, [()] * batch.num_requests, []
    if call.kv_cache is not None:
        view = layer.view_of(call.kv_cache)
        tables, blocks = _numbered_anew(call, kept, view.block_size)
        cache = _cache(layer, view, len(blocks))
    requests = tuple(
        Request(
            query_len=starts[r + 1] - starts[r],
            seq_len=seq_lens[r],
            blocks=tables[r],
            causal=causal[r],
            bidirectional_ranges=tuple((first, last) for first, last in ranges[r] if first <= last),
        )
        for r in kept
    )
    case = Case(
        target=target,
        attn_type=layer.attn_type,
        dtype=_NAMES[dtype],  # pyright: ignore[reportArgumentType]
        num_kv_heads=layer.num_kv_heads,
        group_size=layer.num_heads // layer.num_kv_heads,
        head_size=layer.head_size,
        scale=layer.scale,
        **rules,
        selected_width=_selected_width(call, kept),
        selected_per_head=batch.selected is not None and len(batch.selected) > 1,
        narrow_sinks=layer.sinks is not None and layer.sinks.dtype == dtype != torch.float32,
        per_request_causal=isinstance(batch.causal, torch.Tensor),
        requests=requests,
        cache=cache,
        writes=cache is None,
        slack=batch.max_query_len - max((starts[r + 1] - starts[r] for r in kept), default=0),
        output_dtype=None if layer.output_scale is None else _output_dtype(layer),
        values=values,
    )
    return case, blocks


# the case's value of a rule whose tensor it holds, if this value is more than a flag
_KINDS = {"qq_bias": "random", "sinks": "near"}


def _rules(call: Call) -> dict[str, Any]:
    """The fields of a case for the rules that a call asks for. Ranges are left out: they are fields of the requests.

    Raises:
        CaptureError: a case has no field for one of them.
    """
    found = active_rules(call.layer, call.batch)
    if missing := [name for name in found if name not in (*Case.__struct_fields__, *contents.IN_REQUESTS)]:
        raise CaptureError(f"no case can represent this call: it asks for {', '.join(missing)}")
    return {
        name: _kind(name, value, call.layer) if isinstance(value, torch.Tensor) else value
        for name, value in found.items()
        if name not in contents.IN_REQUESTS
    }


def _selected_width(call: Call, kept: Sequence[int]) -> int | None:
    """The number of entries in a row of the selection, up to the last column in which a request's row names a unit."""
    if call.batch.selected is None:
        return None
    names_unit = (call.batch.selected[:, _rows(call, kept)] >= 0).flatten(0, 1).any(0).nonzero()
    return int(names_unit[-1]) + 1 if len(names_unit) else 0


def _kind(name: str, tensor: torch.Tensor, layer: Layer) -> Any:
    if name == "q_scale":
        return "head" if tensor.numel() > 1 else "tensor"
    return _KINDS.get(name, True)


def _output_dtype(layer: Layer) -> Float8:
    """The float8 type of the machine: that of its cache, if it is one."""
    return "fp8_e4m3fnuz" if layer.kv_cache_dtype == torch.float8_e4m3fnuz else "fp8_e4m3fn"


def _cache(layer: Layer, view: KVCacheView, num_blocks: int) -> Cache:
    scales = None
    if layer.k_scale_cache is not None:
        scales = "token"
    elif layer.k_scale is not None:
        numbers = [scale.numel() for scale in (layer.k_scale, layer.v_scale) if scale is not None]
        scales = "head" if max(numbers) > 1 else "tensor"
    has_planes = view.kv_stride > view.block_stride if view.num_blocks > 1 else view.layout.dims[0] == "kv"
    has_content_rows = "content" in view.layout.dims
    slots_outside = has_content_rows and view.slot_stride > view.head_stride
    has_latent_rows = view.layout.has_latent_value and not view.layout.has_dense_pages
    return Cache(
        layout=view.layout,
        block_size=view.block_size,
        num_blocks=max(1, num_blocks),
        planes=has_planes and not has_content_rows,
        slot_padding=view.slot_stride - view.row_size if has_latent_rows and view.block_size > 1 else 0,
        order=PhysicalOrder.LBNHC if slots_outside else PhysicalOrder.LBHNC,
        dtype=_NAMES[layer.kv_cache_dtype] if layer.kv_cache_dtype is not None else None,  # pyright: ignore[reportArgumentType]
        scales=scales,
    )


def _numbered_anew(call: Call, kept: Sequence[int], block_size: int) -> tuple[list[tuple[int, ...]], list[int]]:
    """For each request the new numbers of its blocks, and for each new number the block of the call.

    A block of which a request sees no key may belong to another request by now; vLLM leaves its null block there. Such a block
    becomes a block of the request's own.
    """
    assert call.kv_cache is not None
    assert call.batch.block_table is not None
    num_keys, table = call.layer.num_keys(call.batch.seq_lens).tolist(), call.batch.block_table.tolist()
    seen = [torch.zeros(count, dtype=torch.bool) for count in num_keys]
    for request in attn_reference.paged_requests(call.q, call.kv_cache, call.layer, call.batch, torch.float32):
        seen[request.index] |= request.seen.any(1).cpu()
    tables: list[tuple[int, ...]] = [()] * len(num_keys)
    numbers: dict[int, int] = {}
    blocks: list[int] = []
    for r in kept:
        row = []
        for i, first in enumerate(range(0, num_keys[r], block_size)):
            block, is_seen = table[r][i], seen[r][first : first + block_size].any()
            number = numbers.setdefault(block, len(blocks)) if is_seen else len(blocks)
            if number == len(blocks):
                blocks.append(block)
            row.append(number)
        tables[r] = tuple(row)
    return tables, blocks


def _tensors(call: Call, kept: Sequence[int], case: Case, blocks: list[int]) -> dict[str, torch.Tensor]:
    """The tensors whose shapes and dtypes `_expected` gives, from the call."""
    layer, rows = call.layer, _rows(call, kept)
    found = {"q": call.q[rows], **layer.tensors}
    if case.cache is None:
        assert call.k is not None
        assert call.v is not None
        found |= {"k": call.k[rows], "v": call.v[rows]}
    else:
        found |= _keys_and_values(call, case, case.cache, blocks)
    requests = torch.tensor([*kept], dtype=torch.int64, device=rows.device)
    entries = {ROWS: rows, REQUESTS: requests, QUERIES: slice(case.max_query_len)}
    found |= axes.taken(call.batch, layer, entries)
    if "selected" in found:
        found["selected"] = found["selected"][..., : case.selected_width]
    expected = _expected(case)
    for name in (*layer.tensors, *_held_by_batch(call)):
        if name not in expected:
            raise CaptureError(f"no case can represent this call: it has {name}")
        if torch.promote_types(found[name].dtype, expected[name][1]) != expected[name][1]:
            raise CaptureError(f"no case can represent this call: {name} is of {found[name].dtype}")
    # a scale with one element may have any number of dimensions, and applies to all heads
    return {
        name: found[name].detach().expand(shape).to(device="cpu", dtype=dtype).contiguous()
        for name, (shape, dtype) in expected.items()
    }


def _held_by_batch(call: Call) -> list[str]:
    """The rules of a call's step whose tensors the file holds."""
    return [name for name in call.batch.tensors if name in held_rules(Batch) and name not in contents.IN_REQUESTS]


def _results(call: Call, kept: Sequence[int], out: torch.Tensor | None, lse: torch.Tensor | None) -> dict[str, torch.Tensor]:
    """The rows of the requests of `out` and `lse`, if they are not too large."""
    if out is None or out.numel() > KEPT_ELEMENTS:
        return {}
    rows = _rows(call, kept)
    found = {"out": out.reshape(len(out), call.layer.num_heads, call.layer.v_head_size)[rows]}
    if lse is not None:
        found["lse"] = lse[:, rows]
    return {name: tensor.detach().cpu().contiguous() for name, tensor in found.items()}


def _rows(call: Call, kept: Sequence[int]) -> torch.Tensor:
    bounds = list(itertools.pairwise(call.batch.query_start_loc.tolist()))
    return torch.tensor([row for r in kept for row in range(*bounds[r])], dtype=torch.int64, device=call.q.device)


def _keys_and_values(call: Call, case: Case, cache: Cache, blocks: list[int]) -> dict[str, torch.Tensor]:
    layer, kv_cache = call.layer, call.kv_cache
    assert kv_cache is not None
    view = layer.view_of(kv_cache)
    slots = torch.tensor(slots_of_keys(case, cache), dtype=torch.int64)
    block = torch.tensor(blocks, dtype=torch.int64)[slots // cache.block_size].to(kv_cache.device)
    offset = (slots % cache.block_size).to(kv_cache.device)
    raw = bits(kv_cache.as_strided((view.end,), (1,), 0))
    found = {name: raw[elements_of_slots(view, kv, block, offset)].view(kv_cache.dtype) for kv, name in _stored_parts(view)}
    for name in ("k_scale_cache", "v_scale_cache"):
        if name in layer.tensors:
            found[name] = layer.tensors[name][block, offset]
    return found


def _stored_parts(view: KVCacheView) -> tuple[tuple[int, str], ...]:
    """The parts that a cache stores apart, by their names in the file. V is a part of K in a latent cache."""
    return ((K, "k"),) if view.layout.has_latent_value else ((K, "k"), (V, "v"))


def elements_of_slots(view: KVCacheView, kv: int, block: torch.Tensor, offset: torch.Tensor) -> torch.Tensor:
    """[slots, HK, row] int64: the elements of the allocation that hold K or V, and inline scales, of some slots."""
    head = torch.arange(view.num_kv_heads, device=block.device)[:, None]
    dim = torch.arange(view.row_sizes[kv], device=block.device)
    return view.element(kv, block[:, None, None], offset[:, None, None], head, dim)


def _expected_results(case: Case) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
    """Shape and dtype of the results that a file may hold."""
    rows, dtype = case.query_start_loc[-1], DTYPES[case.output_dtype or case.dtype]
    results = {"out": ((rows, case.num_heads, case.v_head_size), dtype), "lse": ((case.num_heads, rows), torch.float32)}
    return results if case.lse else {"out": results["out"]}


def _expected(case: Case) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
    """Shape and dtype of each tensor in the file."""
    dtype, f32 = DTYPES[case.dtype], torch.float32
    rows, heads, kv_heads = case.query_start_loc[-1], case.num_heads, case.num_kv_heads
    stored = DTYPES[case.cache.dtype or case.dtype] if case.cache is not None else dtype
    of_q = dtype if case.q_scale is None else stored
    expected: dict[str, tuple[tuple[int, ...], torch.dtype]] = {"q": ((rows, heads, case.head_size), of_q)}
    if case.cache is None:
        expected |= {"k": ((rows, kv_heads, case.head_size), dtype), "v": ((rows, kv_heads, case.v_head_size), dtype)}
    else:
        num_slots = num_slots_of_keys(case, case.cache)
        view = allocations.cache_view(case, case.cache)
        expected |= {name: ((num_slots, kv_heads, view.row_sizes[kv]), stored) for kv, name in _stored_parts(view)}
        if case.cache.scales == "token":
            expected |= dict.fromkeys(("k_scale_cache", "v_scale_cache"), ((num_slots, kv_heads), f32))
        elif case.cache.scales is not None:
            names = [f"{name}_scale" for _, name in _stored_parts(view)]
            expected |= dict.fromkeys(names, ((kv_heads if case.cache.scales == "head" else 1,), f32))
    expected |= {
        name: (axes.shape(holder, name, _sizes(case, name)), _dtype_of(case, name))
        for holder in (Layer, Batch)
        for name, rule in held_rules(holder).items()
        if rule.is_tensor and name in case.rules and name not in contents.IN_REQUESTS
    }
    if case.selected_width is not None:
        expected["selected"] = ((kv_heads if case.selected_per_head else 1, rows, case.selected_width), torch.int32)
    if case.output_dtype is not None:
        expected["output_scale"] = ((1,), f32)
    return expected


def _sizes(case: Case, rule: str) -> dict[Axis, int]:
    """The sizes of the axes of a rule's tensor. One scale of q may stand for all KV heads."""
    sizes = contents.sizes(case)
    return {**sizes, KV_HEADS: 1} if rule == "q_scale" and case.q_scale == "tensor" else sizes


def _dtype_of(case: Case, rule: str) -> torch.dtype:
    return DTYPES[case.dtype] if rule == "sinks" and case.narrow_sinks else torch.float32
