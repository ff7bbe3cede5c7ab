"""A call of an op that is like an earlier one writes what it would write if it were the first, and what is wrong is said."""

import weakref
from typing import Any, ClassVar

import attn_optimized
import pytest
import torch
from attn_contract import ContractError, ops
from attn_optimized import repeats
from attn_optimized.attention import forget_launches

from tests.ops.small_calls import CALLS, bits

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
"""Where the kernels run: on a GPU, or interpreted."""
NAMES = [name for name in CALLS if "merge" not in name]
IN_THE_WHOLE_WAY = {name for name in NAMES if "inline scales" in name or "write_latent_cache of LATENT" in name}
"""A launch takes scales from the midst of a cache's rows."""


class Counted(repeats.Repeats):
    """True for each call of this process that was like an earlier one."""

    made_calls: ClassVar[list[bool]] = []

    def made(self, call: Any) -> bool:
        self.made_calls.append(super().made(call))
        return self.made_calls[-1]


@pytest.fixture(autouse=True)
def nothing_is_noted():
    forget_launches()
    Counted.made_calls.clear()


def arguments_of(name: str, seed: int) -> dict[str, Any]:
    """The call of a name with other values in other memory."""
    torch.manual_seed(seed)
    arguments = CALLS[name](DEVICE)
    for tensor in arguments.values():
        if isinstance(tensor, torch.Tensor) and tensor.dtype == torch.float32 and tensor.dim() > 1:
            tensor.copy_(torch.randn(tensor.shape))
    return arguments


def call(name: str, arguments: dict[str, Any], *, repeating: bool) -> None:
    op = name.split()[0]
    required = [one.name for one in getattr(torch.ops.attn_parity, op).default._schema.arguments if not one.kwarg_only]
    options = {key: value for key, value in arguments.items() if key not in required}
    kernel = ops.kernel_of(op, attn_optimized, Counted if repeating else None)
    kernel(*(arguments.get(key) for key in required), **options)


@pytest.mark.parametrize("name", NAMES)
def test_the_second_call_of_a_signature_writes_what_a_first_one_does(name):
    for seed in range(3):
        given, expected = arguments_of(name, seed), arguments_of(name, seed)
        call(name, given, repeating=True)
        call(name, expected, repeating=False)
        tensors = {key: value for key, value in expected.items() if isinstance(value, torch.Tensor)}
        assert [key for key, tensor in tensors.items() if not torch.equal(bits(tensor), bits(given[key]))] == []
    assert Counted.made_calls == [False, name not in IN_THE_WHOLE_WAY, name not in IN_THE_WHOLE_WAY]


def test_lengths_that_are_rounded_alike_are_one_signature_and_others_are_not():
    for max_seq_len in (9, 10, 5000):
        call("paged_attention", arguments_of("paged_attention", 0) | {"max_seq_len": max_seq_len}, repeating=True)
    assert Counted.made_calls == [False, True, False]


@pytest.mark.parametrize(
    "wrong",
    [
        lambda arguments: {"q": arguments["q"].requires_grad_()},
        lambda arguments: {"out": arguments["q"]},
        lambda arguments: {"q": torch._neg_view(arguments["q"])},
        lambda arguments: {"max_seq_len": -1},
        lambda arguments: {"seq_lens": None},
        lambda arguments: {"scale": float("nan")},
    ],
    ids=["gradient", "shared memory", "negated", "negative length", "None", "NaN"],
)
def test_a_wrong_argument_of_a_later_call_is_refused(wrong):
    call("paged_attention", arguments_of("paged_attention", 0), repeating=True)
    arguments = arguments_of("paged_attention", 1)
    with pytest.raises(ContractError):
        call("paged_attention", arguments | wrong(arguments), repeating=True)


def test_a_tensor_that_is_not_aligned_takes_the_whole_way():
    call("paged_attention", arguments_of("paged_attention", 0), repeating=True)
    arguments, expected = arguments_of("paged_attention", 1), arguments_of("paged_attention", 1)
    room = arguments["q"].new_empty(arguments["q"].numel() + 1)
    arguments["q"] = room[1:].view(arguments["q"].shape).copy_(arguments["q"])
    call("paged_attention", arguments, repeating=True)
    call("paged_attention", expected, repeating=False)
    assert torch.equal(arguments["out"], expected["out"])
    assert Counted.made_calls == [False, False]


def test_equal_tensors_of_a_first_call_are_two_arguments_of_a_later_one():
    name = "paged_attention of float8 queries"
    for seed, factor in ((0, 1.0), (1, 2.0)):
        given, expected = arguments_of(name, seed), arguments_of(name, seed)
        for arguments in (given, expected):
            arguments["v_scale"] = arguments["k_scale"] if seed == 0 else arguments["k_scale"] * factor
        call(name, given, repeating=True)
        call(name, expected, repeating=False)
        assert torch.equal(given["out"], expected["out"])
    assert Counted.made_calls == [False, True]


def test_no_tensor_is_kept():
    arguments = arguments_of("paged_attention", 0)
    call("paged_attention", arguments, repeating=True)
    tensors = [weakref.ref(value) for value in arguments.values() if isinstance(value, torch.Tensor)]
    arguments.clear()
    assert [tensor() for tensor in tensors] == [None] * len(tensors)
