"""The promises of `torch.library.opcheck` and of the schemas to torch.compile, on each device."""

from contextlib import nullcontext

import pytest
import torch
from attn_contract import ContractError
from torch._subclasses.fake_tensor import FakeTensorMode

from tests.ops.small_calls import CALLS, IN_EACH_RUN, bits
from tests.support.mostly_nightly import mostly_nightly


def is_float8(value: object) -> bool:
    return isinstance(value, torch.Tensor) and value.dtype == torch.float8_e4m3fn


@pytest.mark.parametrize("call", mostly_nightly(CALLS, IN_EACH_RUN), indirect=True)
def test_every_call_passes_opcheck(call):
    """For float8 without opcheck's own test of the schema, which multiplies what it compares: torch has no such arithmetic. The
    test below asks the same, of bits."""
    tests = ["test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic"]
    if any(map(is_float8, call.arguments.values())):
        tests.remove("test_schema")
    torch.library.opcheck(call.op, (), call.arguments, test_utils=tests)


def test_tensors_that_the_schema_calls_written_are_written_and_no_others(call):
    tensors = {name: value for name, value in call.arguments.items() if isinstance(value, torch.Tensor)}
    before = {name: bits(tensor) for name, tensor in tensors.items()}
    call.op(**call.arguments)
    assert [name for name, tensor in tensors.items() if not torch.equal(bits(tensor), before[name])] == call.written


OPS = sorted({name.split()[0] for name in CALLS})


@pytest.mark.parametrize("name", OPS)
def test_each_op_has_kernels_for_gpus_returns_nothing_and_writes_no_argument_twice(name):
    schema = getattr(torch.ops.attn_parity, name).default._schema
    written = [str(argument.alias_info.before_set) for argument in schema.arguments if argument.alias_info is not None]
    assert len(set(written)) == len(written), "two arguments are one alias"
    assert not schema.returns
    assert torch._C._dispatch_has_kernel_for_dispatch_key(f"attn_parity::{name}", "CUDA")


@pytest.mark.parametrize("call_name", OPS)
@pytest.mark.parametrize("is_fake", [False, True], ids=["run", "traced"])
def test_none_in_place_of_a_tensor_is_refused(call_name, is_fake):
    """Every argument that the schema calls a tensor, whether the op runs or torch.compile traces it."""
    op = getattr(torch.ops.attn_parity, call_name).default
    arguments = CALLS[call_name](torch.device("cpu"))
    names = [argument.name for argument in op._schema.arguments if str(argument.type) == "Tensor"]
    assert len(names) > 2
    for name in names:
        mode = FakeTensorMode(allow_non_fake_inputs=True) if is_fake else nullcontext()
        with mode, pytest.raises(ContractError) as refused:
            op(**arguments | {name: None})
        assert str(refused.value) == f"{name}: got None, expected a tensor"


def test_every_argument_of_every_op_is_given_by_some_call():
    """A rule that becomes an option is checked here only if a call has it."""
    given: dict[str, set[str]] = {}
    for name, arguments in CALLS.items():
        given.setdefault(name.split()[0], set()).update(arguments(torch.device("cpu")))
    for name, arguments in given.items():
        schema = getattr(torch.ops.attn_parity, name).default._schema
        assert {argument.name for argument in schema.arguments} == arguments, name


@pytest.mark.parametrize("call_name", OPS)
def test_an_empty_tensor_is_refused_by_its_own_name(call_name):
    """The op makes a layer of its arguments: a message names one of these, and not a field of the layer."""
    op = getattr(torch.ops.attn_parity, call_name).default
    arguments = CALLS[call_name](torch.device("cpu"))
    names = {argument.name for argument in op._schema.arguments}
    refused = set()
    for name, value in arguments.items():
        for dim in range(value.dim() if isinstance(value, torch.Tensor) else 0):
            try:
                op(**arguments | {name: value.narrow(dim, 0, 0)})
            except ContractError as error:
                refused.add(error.argument.split("[")[0])
    assert refused
    assert refused <= names


@pytest.mark.parametrize("call_name", OPS)
def test_a_negated_view_is_refused_by_its_name(call_name):
    """A written one, too: torch would fail without a word about it."""
    op = getattr(torch.ops.attn_parity, call_name).default
    arguments = CALLS[call_name](torch.device("cpu"))
    for name, value in arguments.items():
        if isinstance(value, torch.Tensor):
            with pytest.raises(ContractError, match=f"{name}: got a negated view, expected a tensor whose memory"):
                op(**arguments | {name: torch._neg_view(value)})
