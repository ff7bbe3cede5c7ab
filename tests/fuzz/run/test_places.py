"""A message names the place of the fault, also where a tensor has one row or two."""

import dataclasses
import itertools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import msgspec
import pytest
import torch
from attn_contract import Capabilities, Layout, Only, UnsupportedError
from attn_fuzz import properties
from attn_fuzz.cases import tensors
from attn_fuzz.cases.case import Cache, Case, Request, Rope, Values
from attn_fuzz.cases.tensors import PADDING, Step
from attn_fuzz.interpreted.permissions import of_attention
from attn_fuzz.interpreted.sanitizer import Violation
from attn_fuzz.run.case import checks
from attn_fuzz.run.case.attempt import Attempt
from attn_fuzz.run.case.checks import CHECKS
from attn_fuzz.targets.reference import REFERENCE_FP32
from attn_fuzz.verdict.judge import judge, judge_finite
from attn_optimized.backends.triton_attn import TritonAttentionBackend

from tests.fuzz.verdict.test_properties import ALL, written
from tests.support.mostly_nightly import mostly_nightly

replace = msgspec.structs.replace
HEADS, HEAD_SIZE, BLOCK_SIZE = 2, 4, 2
WIDTH = HEADS * HEAD_SIZE


def case_of(rows: int, **changes: Any) -> Case:
    """A step of so many requests, each with one query, three keys and blocks of its own."""
    cache = Cache(layout=Layout.KV_FIRST_NHD, block_size=BLOCK_SIZE, num_blocks=max(2, 2 * rows))
    requests = tuple(Request(1, 3, (2 * r, 2 * r + 1), True) for r in range(rows))
    case = Case(target="planted", num_kv_heads=HEADS, head_size=HEAD_SIZE, requests=requests, cache=cache, lse=True)
    return replace(case, **changes)


class Fault(NamedTuple):
    """One wrong number at a known place.

    Args:
        case: in which it is made.
        says: what the message must contain.
        attend: makes the fault after the reference has attended; it takes the arguments of the target.
        write, rotate: makes the fault after a cache write.
        declares: fields of the target.
    """

    case: Case
    says: str
    attend: Callable[..., object] | None = None
    write: Callable[..., object] | None = None
    rotate: Callable[..., object] | None = None
    declares: dict[str, Any] = {}  # noqa: RUF012


def attempt_with(fault: Fault) -> Attempt:
    def then(right: Callable[..., object] | None, wrong: Callable[..., object] | None) -> Callable[..., None]:
        assert right is not None

        def function(*arguments, **named) -> None:
            right(*arguments, **named)
            if wrong is not None:
                wrong(*arguments, **named)

        return function

    functions = {
        "attention": then(REFERENCE_FP32.attention, fault.attend),
        "write_kv_cache": then(REFERENCE_FP32.write_kv_cache, fault.write),
        "rope_and_write_kv_cache": then(REFERENCE_FP32.rope_and_write_kv_cache, fault.rotate),
    }
    return Attempt(fault.case, dataclasses.replace(REFERENCE_FP32, **functions, **fault.declares), "cpu")


def at(tensor: torch.Tensor, offset: int) -> torch.Tensor:
    """The element so many elements after the tensor's first, which may lie outside."""
    return tensor.as_strided((1,), (1,), tensor.storage_offset() + offset)


def raises(error: BaseException) -> Callable[..., None]:
    def function(*arguments, **named) -> None:
        raise error

    return function


def changes_first(name: str, offset: int = 0) -> Callable[..., None]:
    """Changes an element of an input of attention: its first, or another one of its memory."""

    def function(q, k, v, kv_cache, layer, batch, *, out, lse) -> None:
        tensor = {"q": q, **layer.tensors, **batch.tensors}[name]
        element = at(tensor, offset)
        element.copy_(~element if tensor.dtype is torch.bool else torch.full((1,), 77, dtype=tensor.dtype))

    return function


def out_faults(rows: int) -> Iterator[Fault]:
    stride = WIDTH + PADDING

    def writes(offset: int, case: Case, says: str) -> Fault:
        def attend(*arguments, out, lse) -> None:
            at(out, offset).fill_(1)

        return Fault(case, f"it wrote to out {says}", attend)

    whole, unowned = case_of(rows), case_of(rows - 1, unowned_rows=1)
    yield writes(rows * stride, whole, f"row {rows}, outside the tensor; 1 elements")
    yield writes((rows + 2) * stride + 5, whole, f"row {rows + 2}, outside the tensor")
    yield writes(-stride, whole, "row -1, outside the tensor")
    yield writes(-1, whole, "1 elements before row 0, outside the tensor")
    for row in range(rows) if rows > 1 else ():
        yield writes(row * stride + WIDTH + 2, whole, f"3 elements past the end of row {row}, outside the tensor")
    if rows == 1:  # as contiguous memory, which one row is to torch, the next row begins where the first one ends
        yield writes(WIDTH, whole, "row 1, outside the tensor")
    yield writes((rows - 1) * stride, unowned, f"row {rows - 1}, a row that it must not write")


def lse_faults(rows: int) -> Iterator[Fault]:
    def writes(head: int, row: int, case: Case, says: str) -> Fault:
        def attend(*arguments, out, lse) -> None:
            at(lse, head * lse.stride(0) + row).fill_(1)

        return Fault(case, f"it wrote to lse {says}", attend)

    whole, unowned = case_of(rows), case_of(rows - 1, unowned_rows=1)
    for head in range(HEADS):
        yield writes(head, rows, whole, f"row {rows}, head {head}, outside the tensor")
        yield writes(head, -1, whole, f"row -1, head {head}, outside the tensor")
        yield writes(head, rows - 1, unowned, f"row {rows - 1}, head {head}, a row that it must not write")
    for head, row in itertools.product((-1, HEADS), range(rows)):
        yield writes(head, row, whole, f"row {row}, head {head}, outside the tensor")


def cache_faults(rows: int, what: str) -> Iterator[Fault]:
    """Faults in every part of the memory of the cache, for attention or for the cache write."""
    case = case_of(rows)
    for kv, block, slot, head in itertools.product(range(2), range(2 * rows), range(BLOCK_SIZE), range(HEADS)):
        place = (kv, block, slot, head, 3)

        def attend(q, k, v, kv_cache, layer, batch, *, out, lse, place=place) -> None:
            kv_cache[place] = 99

        def write(k, v, kv_cache, layer, slot_mapping, place=place) -> None:
            kv_cache[place] = 99

        says = f"{'KV'[kv]} of block {block}, slot {slot}, head {head}, dim 3: got 99"
        if what == "attention":
            yield Fault(case, f"attention wrote into the cache: {says}", attend=attend)
        else:
            yield Fault(case, f"the cache write: {says}", write=write)
    scaled = case_of(rows, cache=replace(case.cache, dtype="int8", scales="token"))
    for name, block, slot, head in itertools.product(
        ("k_scale_cache", "v_scale_cache"), range(2 * rows), range(BLOCK_SIZE), range(HEADS)
    ):

        def changes_scale(*arguments, out=None, lse=None, name=name, place=(block, slot, head)) -> None:
            layer = next(argument for argument in arguments if hasattr(argument, "k_scale_cache"))
            getattr(layer, name)[place] = 99

        says = f"{name} of block {block}, slot {slot}, head {head}: got 99"
        if what == "attention":
            yield Fault(scaled, f"attention wrote into the cache: {says}", attend=changes_scale)
        else:
            yield Fault(scaled, f"the cache write: {says}", write=changes_scale)


def query_faults(rows: int) -> Iterator[Fault]:
    case = case_of(rows, rope=Rope(rotary_dim=2))
    for place in itertools.product(range(rows), range(HEADS), range(HEAD_SIZE)):

        def rotate(q, *arguments, place=place, **named) -> None:
            q[place] = 99

        row, head, dim = place
        yield Fault(case, f"q at row {row}, head {head}, dim {dim}: got 99", rotate=rotate)


def input_faults(rows: int, offset: int, says: str) -> Iterator[Fault]:
    case = case_of(rows, sinks="near", alibi_slopes=True, qq_bias="tree", per_request_causal=True)
    names = ["q", "sinks", "alibi_slopes", "qq_bias", "seq_lens", "query_start_loc", "causal"]
    for name in names:
        yield Fault(case, f"{says} {name}", attend=changes_first(name, offset))


def of_head_size(size: int) -> Capabilities:
    return dataclasses.replace(TritonAttentionBackend.capabilities(NO_AITER), head_sizes=Only((size,), "so"))


NO_AITER: Any = None
NO_HEADS_OF_4 = dataclasses.replace(REFERENCE_FP32.support("cpu"), refused_sizes={"head_sizes": (4,)})
NO_BLOCKS_OF_2 = dataclasses.replace(REFERENCE_FP32.support("cpu"), refused_sizes={"block_sizes": (2,)})


def faults(rows: int) -> dict[Callable[..., object], list[Fault]]:
    """By check of CHECKS: faults in a step of so many rows that the check finds."""
    violation = Violation("load at kernel.py:7 in kernel, program (0, 0, 0): q[0, 1, 2]: only ...", "load of q")
    return {
        checks.forbidden_access: [Fault(case_of(rows), "q[0, 1, 2]", attend=raises(violation))],
        checks.wrong_error: [Fault(case_of(rows), "KeyError: 'row 1'", attend=raises(KeyError("row 1")))],
        checks.broken_declaration: [
            Fault(
                case_of(rows),
                "refused it: UnsupportedError: ",
                attend=raises(UnsupportedError("it", "row 1", "so")),
                declares={"declares": lambda device: of_head_size(HEAD_SIZE)},
            ),
            Fault(case_of(rows), "declares head size 4 not supported", declares={"declares": lambda device: of_head_size(8)}),
        ],
        checks.missing_refusal: [
            Fault(case_of(rows), "head size 4 is beyond its support", declares={"support": lambda device: NO_HEADS_OF_4}),
            Fault(case_of(rows), "block size 2 is beyond its support", declares={"support": lambda device: NO_BLOCKS_OF_2}),
        ],
        checks.written_cache: list(cache_faults(rows, "attention")),
        checks.wrong_cache_write: list(cache_faults(rows, "write")),
        checks.wrong_query: list(query_faults(rows)),
        checks.changed_input: list(input_faults(rows, 0, "it changed its input")),
        checks.write_around_an_input: list(input_faults(rows, -1, "it wrote outside of its input")),
        checks.stray_write: [*out_faults(rows), *lse_faults(rows)],
    }


def test_every_check_has_faults():
    assert set(faults(1)) == {check for _, check in CHECKS}
    assert all(faults(rows)[check] for rows in (1, 2) for _, check in CHECKS)


@pytest.mark.parametrize("rows", mostly_nightly([1, 2], [2]))
@pytest.mark.parametrize("check", [check for _, check in CHECKS], ids=lambda check: check.__name__)
def test_a_check_names_the_place_of_a_fault(check, rows):
    for fault in faults(rows)[check]:
        found = check(attempt_with(fault))
        assert found is not None, fault.says
        assert fault.says in found.message
        assert found.about


@pytest.mark.parametrize("oracle", [True, False], ids=["judge", "judge_finite"])
@pytest.mark.parametrize("rows", [1, 2])
def test_the_judge_names_the_place_of_a_fault(rows, oracle):
    wrong = 99.0 if oracle else torch.nan
    for row, head, dim in itertools.product(range(rows), range(HEADS), range(HEAD_SIZE)):

        def attend(*arguments, out, lse, place=(row, head, dim)) -> None:
            out[place] = wrong

        def attend_lse(*arguments, out, lse, place=(head, row)) -> None:
            lse[place] = wrong

        places = {f"out of request {row} at row {row}, head {head}, dim {dim}: got ": attend}
        places |= {f"lse of request {row} at row {row}, head {head}: got ": attend_lse}
        for says, fault in places.items():
            step = attempt_with(Fault(case_of(rows), says, fault)).step
            judgement = judge(case_of(rows), step, REFERENCE_FP32.rounding("cpu")) if oracle else judge_finite(step)
            assert judgement.message.startswith(says)


CHUNKS = dataclasses.replace(properties.chunked_prefill(lambda step: 1, properties.error_bound(REFERENCE_FP32.rounding)))
OF_PROPERTIES = [each for each in ALL if each.name != "chunked prefill"] + [CHUNKS]


def step_for(name: str) -> Step:
    """A step of two rows that a property applies to, with the reference's outputs."""
    changes: dict[str, Any] = {"scale": 0.25, "values": Values("random", 3)}
    if name == "forgotten keys":
        changes["window"] = (0, -1)
    if name in ("order of selection", "all selected"):
        changes |= {"selection_unit": 1, "selected": "all"}
    case = case_of(2, **changes)
    if name == "chunked prefill":
        case = replace(case, requests=(Request(2, 3, (0, 1), True),))
    step = written(case)
    call_reference(step)
    return step


def call_reference(step: Step) -> None:
    REFERENCE_FP32.attention(step.q, step.k, step.v, step.kv_cache, step.layer, step.batch, out=step.out, lse=step.lse)


@pytest.mark.parametrize("each", OF_PROPERTIES, ids=lambda each: each.name.replace(" ", "_"))
def test_a_property_names_the_place_of_a_fault(each):
    """The fault is in the outputs of the step. Where only variants are compared, it is in theirs, whose rows are the same."""
    for row, head, dim in itertools.product(range(2), range(HEADS), range(HEAD_SIZE)):
        step = step_for(each.name)
        assert each(step, call_reference) is None
        step.out[row, head, dim] -= 9
        message = each(step, call_reference)
        if message is None:
            calls = itertools.count()

            def call_with_fault(part: Step, place=(row, head, dim), calls=calls) -> None:
                call_reference(part)
                part.out[place] -= 9 * (next(calls) + 1)

            message = each(step, call_with_fault)
        assert message is not None
        assert f"row {row}, head {head}" in message
        assert "dim" not in message or f"dim {dim}: " in message


@pytest.mark.parametrize("rows", [1, 2])
def test_the_sanitizer_names_the_place_of_an_element(rows):
    step = tensors.build(case_of(rows))
    regions = {region.name: region for region in of_attention(step)}
    for name in ("q", "out", "lse"):
        region = regions[name]
        tensor = region.tensor
        for index in itertools.product(*(range(size) for size in tensor.shape)):
            element = tensor.storage_offset() + sum(i * stride for i, stride in zip(index, tensor.stride(), strict=True))
            assert region.describe(element) == f"{name}[{', '.join(map(str, index))}]"
        assert region.describe(tensor.storage_offset() - 2) == f"{name}, 2 elements before its first"
        last = tensor.storage_offset() + sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True))
        assert region.describe(last + 1) == f"{name}, 1 elements past its last"
    assert step.view is not None
    places = itertools.product(range(2), range(2 * rows), range(BLOCK_SIZE), range(HEADS), range(HEAD_SIZE))
    for kv, block, slot, head, dim in places:
        element = int(step.view.element(kv, block, slot, head, dim))
        where = f"kv_cache, {'KV'[kv]} of block {block}, slot {slot}, head {head}, dim {dim}"
        assert regions["kv_cache"].describe(element) == where
