"""Wrong arguments must be refused, and a wrong number by an error that names its argument."""

import pytest
import torch
from attn_contract import ContractError
from attn_fuzz.targets.wrong_arguments import wrong_calls

ARGUMENTS = {"size": 3, "bound": 5}


def checked(*, size: int, bound: int, swapped: bool) -> None:
    named = {"bound": size, "size": bound} if swapped else {"size": size, "bound": bound}
    for name, value in named.items():
        if not isinstance(value, int) or value < 0:
            raise ContractError(name, value, "an int, at least 0")


def test_a_wrong_number_is_refused_by_its_name():
    for _, call in wrong_calls(lambda **given: checked(**given, swapped=False), ARGUMENTS):
        with pytest.raises(ContractError):
            call()


@pytest.mark.parametrize("name", ARGUMENTS)
@pytest.mark.parametrize("value", ["-1", "float", "None"])
def test_an_error_that_names_another_argument_is_a_failure(name, value):
    calls = dict(wrong_calls(lambda **given: checked(**given, swapped=True), ARGUMENTS))
    what = {"-1": f"{name} -1", "float": f"{name} {float(ARGUMENTS[name])!r}", "None": f"{name}=None"}[value]
    with pytest.raises(AssertionError, match=f"expected an error that names {name}"):
        calls[what]()


def test_a_tensor_without_elements_has_no_gaps():
    """The strides of a tensor without elements say nothing, and the contract takes any."""
    for tensor, has_gaps in ((torch.ones(2, 4), True), (torch.ones(0, 4), False)):
        forms = [what for what, _ in wrong_calls(lambda **given: None, {"q": tensor})]
        assert any("gaps" in what for what in forms) == has_gaps


def test_a_text_for_each_flag_is_among_the_calls():
    """Also for one that the caller did not name."""

    def flagged(*, size: int, fast: bool = False, checks: bool = True) -> None:
        pass

    forms = [what for what, _ in wrong_calls(flagged, {"size": 3, "fast": True})]
    assert {what.split("=")[0] for what in forms if "no such thing" in what} == {"size", "fast", "checks"}
