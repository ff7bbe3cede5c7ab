"""A failure as a script that holds the tensors of its case, and compares the target with the reference on them."""

import base64
import dataclasses
import enum
import zlib
from typing import Any

import torch
from attn_contract import Layer
from attn_fuzz.cases import earlier_writes, tensors
from attn_fuzz.cases.case import Case
from attn_fuzz.cases.poison import storage_of
from attn_fuzz.cases.tensors import Step
from attn_fuzz.interpreted import new_memory
from attn_fuzz.verdict.verdict import COMPILED, Verdict

LITERAL_ELEMENTS = 64


def script(case: Case, verdict: Verdict) -> str:
    """A standalone script: it runs the target and the reference on the case's tensors, and exits with 1 if they differ.

    It exits with 2 if the target is not found, or if this tool is at fault.
    """
    step = tensors.build(case)
    return _SCRIPT.format(
        title=f"{case.target}: {verdict.kind}: {verdict.message}".replace("\\", "/").replace('"', "'"),
        target=case.target,
        layer=_layer(step.layer),
        batch=_batch(step),
        q=_tensor(step.q),
        cache=_cache(step) if step.raw is not None else _dense(step),
        writes=_writes(step, case),
        earlier=_EARLIER.format(names=case.earlier) if case.earlier else "",
        memory="torch.no_grad()"  # Dynamo sees what fills memory
        if COMPILED in verdict.events
        else f"new_memory.filled(with_numbers={new_memory.numbers_in(case)})",
        reference="paged_attention(q, kv_cache, layer, batch"
        if step.raw is not None
        else "varlen_attention(q, k, v, layer, batch",
        out_dtype=step.out.dtype,
        out_shape=tuple(step.out_buffer.shape),
        out=_slice_of("out_buffer", step.out),
        lse_shape=tuple(step.lse_buffer.shape),
        lse=_slice_of("lse_buffer", step.lse),
        checks=_checks(verdict),
        rows=case.query_start_loc[-1],
        program_order=case.program_order,
        seed=case.values.seed,
    )


def _checks(verdict: Verdict) -> str:
    """The worst elements as literals of the script. `float` also spells numbers that are not finite."""
    lines = []
    for worst in verdict.differences:
        place = (worst.row, worst.head) if worst.dim is None else (worst.row, worst.head, worst.dim)
        lines.append(f'    ("{worst.tensor}", {place}, float("{worst.expected!r}"), float("{worst.bound!r}")),')
    return "[\n" + "\n".join(lines) + "\n]" if lines else "[]"


_SCRIPT = '''"""{title}"""

import base64
import copy
import dataclasses
import os
import sys
import zlib

import torch
from attn_fuzz import errors
from attn_fuzz.interpreted import interpreter, new_memory, program_order

errors.end_with_own_exit_code()
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
if DEVICE == "cpu":
    os.environ["TRITON_INTERPRET"] = "1"  # before any kernel is imported
    interpreter.install()
    program_order.use({program_order!r}, seed={seed})

import attn_reference
from attn_contract import AttentionType, Batch, KVCacheView, Layer, Layout
from attn_fuzz.targets import registry


def packed(data, dtype, shape):
    return torch.frombuffer(bytearray(zlib.decompress(base64.b85decode(data))), dtype=dtype).reshape(shape).to(DEVICE)


def all_bytes(tensor):
    memory = tensor.untyped_storage()
    return torch.empty(0, dtype=torch.uint8, device=tensor.device).set_(memory)


target = registry.load({target!r})
layer = {layer}
batch = {batch}
q = {q}
{cache}{writes}
out_buffer = torch.full({out_shape}, 96.0, dtype={out_dtype}, device=DEVICE)
out = {out}
lse_buffer = torch.full({lse_shape}, 96.0, device=DEVICE)
lse = {lse}
inputs = dict(q=q, k=k, v=v, kv_cache=kv_cache, **layer.tensors, **batch.tensors)
inputs = {{name: (tensor, all_bytes(tensor).clone()) for name, tensor in inputs.items() if tensor is not None}}
reference = torch.zeros(len(q), layer.num_heads, layer.v_head_size, dtype=out.dtype, device=DEVICE)
reference_lse = torch.zeros(q.shape[1], q.shape[0], device=DEVICE)
attn_reference.{reference}, out=reference, lse=reference_lse, precision=torch.float64)
{earlier}with errors.raised_by_target(), {memory}:
    target.attention(q, k, v, kv_cache, layer, batch, out=out, lse=lse)

scale = 1.0 if layer.output_scale is None else layer.output_scale.item()
got = {{"out": out.reshape(reference.shape).double() * scale, "lse": None if lse is None else lse.T}}
expected = {{"out": reference.double() * scale, "lse": reference_lse.T}}
wrong = False
# where it was worst: the element, what float64 gives, and how far off it may be
for name, place, right, bound in {checks}:
    value, referred = got[name][place].item(), expected[name][place].item()
    print(f"{{name}}{{list(place)}} {{value:.9g}}, expected {{right:.9g}} +- {{bound:.2g}} (reference {{referred:.9g}})")
    wrong |= not (value == right or abs(value - right) <= bound)
out[:{rows}] = 96.0
if lse is not None:
    lse[:, :{rows}] = 96.0
for name, buffer in {{"out": out_buffer, "lse": lse_buffer}}.items():
    if not (buffer == 96.0).all():
        wrong = True
        print(f"{{name}}: written outside the rows of its requests")
for name, (tensor, before) in inputs.items():
    if not torch.equal(before, all_bytes(tensor)):
        wrong = True
        print(f"{{name}}: changed")
sys.exit(wrong)
'''


_EARLIER = """
from attn_fuzz.cases.tensors import Step
from attn_fuzz.run.case.attempt import call_earlier

view = None if kv_cache is None else layer.view_of(kv_cache)
memory = None if kv_cache is None else raw
outputs = dict(out_buffer=out_buffer, out=out, lse_buffer=lse_buffer, lse=lse)
step = Step(layer=layer, batch=batch, q=q, k=k, v=v, raw=memory, scale_buffers={{}}, view=view, writes=(), **outputs)
with errors.raised_by_target():
    for change in {names}:
        call_earlier(step, change, target, in_full=True)
"""


def _slice_of(buffer: str, tensor: torch.Tensor | None) -> str:
    if tensor is None:
        return "None"
    return f"{buffer}.as_strided({tuple(tensor.shape)}, {tensor.stride()}, {tensor.storage_offset()})"


def _layer(layer: Layer) -> str:
    """The layer as an expression, without fields that have their default."""
    words = []
    for field in dataclasses.fields(layer):
        value = getattr(layer, field.name)
        if isinstance(value, torch.Tensor):
            words.append(f"{field.name}={_tensor(value)}")
        elif isinstance(value, enum.Enum):
            words.append(f"{field.name}={type(value).__name__}.{value.name}")
        elif value != field.default:
            words.append(f"{field.name}={value!r}")
    return "Layer(\n    " + ",\n    ".join(words) + ",\n)"


def _batch(step: Step) -> str:
    batch = step.batch
    fields = [f"{name}={getattr(batch, name)}" for name in ("max_query_len", "max_seq_len", "num_actual_tokens")]
    if not isinstance(batch.causal, torch.Tensor):
        fields.append(f"causal={batch.causal}")
    fields += [f"{name}={_tensor(tensor)}" for name, tensor in batch.tensors.items()]
    return "Batch(\n    " + ",\n    ".join(fields) + ",\n)"


def _cache(step: Step) -> str:
    return f"raw = {_tensor(step.raw)}\nkv_cache = {_view(step.view)}.tensor(raw)\nk = v = None\n"


def _dense(step: Step) -> str:
    return f"k = {_tensor(step.k)}\nv = {_tensor(step.v)}\nkv_cache = None\n"


def _writes(step: Step, case: Case) -> str:
    """Code that has the target and the reference write the cache and rotate q, and compares every byte of the results."""
    if not step.writes:
        return ""
    lines = ["writes = ["]
    for write in step.writes:
        rotation = "None"
        if write.rotation is not None:
            positions, table = _tensor(write.rotation.positions), _tensor(write.rotation.cos_sin_cache)
            rotation = f"({positions}, {table}, {write.rotation.is_neox})"
        parts = (_tensor(write.k), _tensor(write.v), _view(write.view), _tensor(write.slot_mapping), rotation)
        lines.append("    (" + ", ".join(parts) + "),")
    lines.append("]")
    changes = {number: names for number in range(len(step.writes)) if (names := earlier_writes.chosen(case, number))}
    compared = _COMPARED.format(before="    before(number)\n" if changes else "")
    return "\n".join(lines) + _WRITES + (_EARLIER_WRITES.format(changes=changes) if changes else "") + compared


_WRITES = """


def write(by, q, raw, layer, k, v, view, slot_mapping, rotation):
    kv_cache, layer = view.tensor(raw), dataclasses.replace(layer, layout=view.layout)
    if layer.layout.has_latent_value:
        kv_c, k_pe = v[:, 0], k[:, 0, v.shape[2] :]
        (by.write_latent_cache or attn_reference.write_latent_cache)(kv_c, k_pe, kv_cache, layer, slot_mapping)
    elif rotation is None:
        (by.write_kv_cache or attn_reference.write_kv_cache)(k, v, kv_cache, layer, slot_mapping)
    else:
        positions, cos_sin_cache, is_neox = rotation
        rotate = by.rope_and_write_kv_cache or attn_reference.rope_and_write_kv_cache
        rotate(q, k, v, positions, cos_sin_cache, kv_cache, layer, slot_mapping, is_neox=is_neox)

"""

_EARLIER_WRITES = """
from attn_fuzz.cases.tensors import Rotation, Step, Write
from attn_fuzz.run.case.attempt import write_earlier


def before(number):
    k, v, view, slot_mapping, rotation = writes[number]
    own = Write(dataclasses.replace(layer, layout=view.layout), view, k, v, slot_mapping, rotation and Rotation(*rotation))
    scales = {{name: scales for name, scales in layer.tensors.items() if name.endswith("_scale_cache")}}
    unused = dict(k=None, v=None, view=None, writes=(), out_buffer=q, out=q, lse_buffer=q, lse=None)
    step = Step(layer=layer, batch=batch, q=q, raw=raw, scale_buffers=scales, **unused)
    with errors.raised_by_target():
        for change in {changes}[number]:
            write_earlier(own, step, change, target)


"""

_COMPARED = """
expected = copy.deepcopy((q, raw, layer))
for number, arguments in enumerate(writes):
{before}    with errors.raised_by_target():
        write(target, q, raw, layer, *arguments)
    write(attn_reference, *expected, *arguments)
memory = {{"kv_cache": (raw, expected[1])}}
scale_caches = {{name: scales for name, scales in layer.tensors.items() if name.endswith("_scale_cache")}}
memory |= {{name: (scales, expected[2].tensors[name]) for name, scales in scale_caches.items()}}
for name, (written, right) in memory.items():
    changed = (all_bytes(written) != all_bytes(right)).nonzero().flatten()
    if len(changed):
        sys.exit(f"{{name}} differs in {{len(changed)}} bytes, the first at {{changed[0].item()}}")
got, right = q.float(), expected[0].float()
different = ((got != right) | (got.signbit() != right.signbit())) & ~(got.isnan() & right.isnan())
if different.any():
    sys.exit(f"q differs in {{different.sum().item()}} elements after its rotation")
k, v = writes[0][:2]
"""


def _view(view: Any) -> str:
    return repr(view).replace(f"<Layout.{view.layout.name}: '{view.layout.value}'>", f"Layout.{view.layout.name}")


def _tensor(tensor: torch.Tensor | None) -> str:
    """A tensor on DEVICE as an expression: a literal if it is short and finite, else its bytes. A slice has all its memory."""
    assert tensor is not None
    if not tensor.is_contiguous() or tensor.untyped_storage().nbytes() != tensor.nbytes:
        return f"{_tensor(storage_of(tensor))}.as_strided({tuple(tensor.shape)}, {tensor.stride()}, {tensor.storage_offset()})"
    dense = tensor.detach().cpu()
    literal = dense.numel() <= LITERAL_ELEMENTS and bool(dense.double().isfinite().all())
    if literal and dense.numel():
        return f"torch.tensor({dense.tolist()!r}, dtype={dense.dtype}, device=DEVICE)"
    if not dense.numel():
        return f"torch.empty({tuple(dense.shape)}, dtype={dense.dtype}, device=DEVICE)"
    data = base64.b85encode(zlib.compress(dense.view(torch.uint8).numpy().tobytes(), 9)).decode()
    return f"packed({data!r}, {dense.dtype}, {tuple(dense.shape)})"
