"""The extractor says what the source says, and refuses what it does not understand."""

import textwrap

import pytest

pytest.importorskip("z3")

import z3
from attn_proofs import sources as sources_of
from attn_proofs.errors import UnsupportedConstructError
from attn_proofs.extract import Extraction
from attn_proofs.sources import Sources
from attn_proofs.theorem import Claim, decide
from attn_proofs.values import Pointer, number, symbol

PLACE = "attn_optimized.launch.units"


def extracted(body: str, *arguments, kernel: bool = True):
    """The result of a function of this body, and its extraction."""
    decorator = "@triton.jit\n" if kernel else ""
    header = "import triton\nimport triton.language as tl\n\n"
    source = f"{header}{decorator}def function(a, b):\n{textwrap.indent(textwrap.dedent(body), '    ')}\n"
    extraction = Extraction(Sources({PLACE: source}))
    return extraction.call(f"{PLACE}.function", *arguments), extraction


def always(claim, *given) -> bool:
    return decide(Claim("", given, claim)).outcome == "proved"


A, B = z3.Ints("a b")


def numbers():
    return number(A, "int32"), number(B, "int32")


def test_a_kernel_truncates_and_the_host_floors():
    in_kernel, _ = extracted("return a // 4", *numbers())
    on_host, _ = extracted("return a // 4", symbol("a"), symbol("b"), kernel=False)
    assert always(in_kernel.term == -1, A == -7)
    assert always(on_host.term == -2, A == -7)


def test_numbers_of_bits_are_shifted_and_cut():
    found, extraction = extracted("return (a & 0xFF) + (b << 8)", *numbers())
    assert always(found.term == 0xFF + 256 * 3, A == -1, B == 3)
    assert any(note.term.eq(B * 256) for note in extraction.notes)
    with pytest.raises(UnsupportedConstructError):
        extracted("return a & 6", *numbers())


def test_sums_of_the_lanes_before_are_unknown_numbers_of_each_lane():
    found, extraction = extracted("return tl.cumsum(tl.arange(0, 8) + a, 0)", *numbers())
    (reduction,) = extraction.reductions
    assert (reduction.kind, found.shape) == ("cumsum", (8,))
    assert not always(found.at(1) == found.at(2))


def test_an_if_on_a_number_is_followed_both_ways():
    found, _ = extracted("if a > b:\n    c = a\nelse:\n    c = b\nreturn c", *numbers())
    assert always(z3.And(found.term >= A, found.term >= B))
    assert not always(found.term == A)


def test_an_early_return_is_merged():
    found, _ = extracted("if a < 0:\n    return b\nreturn a", *numbers())
    assert always(found.term == z3.If(A < 0, B, A))


def test_an_operand_after_the_one_that_decides_has_no_value():
    """It may be a construct that the extractor does not understand."""
    unknown = "tl.unknown_function(b)"
    assert extracted(f"return a and {unknown}", False, number(B))[0] is False
    assert extracted(f"return a or {unknown}", True, number(B))[0] is True
    with pytest.raises(UnsupportedConstructError):
        extracted(f"return a and {unknown}", True, number(B))


def test_a_bitcast_wraps():
    found, _ = extracted("return (a - b).to(tl.uint32, bitcast=True)", *numbers())
    assert always(found.term == 2**32 - 1, A == 3, B == 4)


def test_a_pointer_to_pairs_moves_by_two_elements():
    _, extraction = extracted("tl.load(a.to(tl.pointer_type(tl.int16)) + b)", Pointer("cache", "float", number(A)), number(B))
    (access,) = extraction.loads
    assert access.pointer.step == 2
    assert always(access.pointer.offset.term == A + 2 * B)


def test_joined_blocks_take_turns():
    body = "return tl.reshape(tl.join(tl.arange(0, 8) + a, tl.arange(0, 8) + b), [16])"
    found, _ = extracted(body, *numbers())
    assert found.shape == (16,)
    assert always(z3.And(found.at(4) == A + 2, found.at(5) == B + 2))


def test_a_sum_leaves_a_note_of_its_width():
    _, extraction = extracted("return a + b", *numbers())
    (note,) = extraction.notes
    assert (note.dtype, note.line) == ("int32", 6)
    assert note.term.eq(A + B)


def test_a_variable_that_a_loop_changes_is_unknown_without_an_invariant():
    found, _ = extracted("c = a\nfor i in range(0, b):\n    c = tl.maximum(c, i)\nreturn c", *numbers())
    assert not always(found.term >= A)


def test_an_increment_has_a_closed_form():
    found, _ = extracted("c = a\nfor _ in range(0, b):\n    c += 2\nreturn c", *numbers())
    assert always(found.term == A + 2 * B, B >= 0)


AHEAD = """
c = tl.maximum({before}, b)
last = 0
for i in range(0, a):
    last = c - tl.maximum(i, b)
    c = tl.maximum(i + 1, b)
return last
"""


def test_a_value_that_each_iteration_gives_the_next_has_a_closed_form():
    _, extraction = extracted(AHEAD.format(before="0"), *numbers())
    told = extraction.local("function", "last", 1)
    assert always(told.value.term == 0, *told.path)
    (obligation,) = extraction.obligations
    assert always(z3.And(*obligation.terms))


@pytest.mark.parametrize(
    ("find", "replace"),
    [
        ("range(0, a)", "range(0, a, 2)"),
        ("    c = tl.maximum(i + 1, b)\n", "    c = tl.maximum(i + 1, b)\n    if b > 0:\n        c = 0\n"),
        ("    c = tl.maximum(i + 1, b)\n", "    c = tl.maximum(i + 1, b)\n    b = b + i\n"),
    ],
    ids=["turns that step over indices", "another assignment", "of what the loop changes"],
)
def test_a_value_that_an_iteration_need_not_have_given_is_unknown(find, replace):
    body = AHEAD.format(before="0")
    assert find in body
    _, extraction = extracted(body.replace(find, replace), *numbers())
    told = extraction.local("function", "last", 1)
    assert not always(told.value.term == 0, *told.path)


def test_the_first_turn_must_be_told_what_the_others_are():
    _, extraction = extracted(AHEAD.format(before="1"), *numbers())
    (obligation,) = extraction.obligations
    assert not always(z3.And(*obligation.terms))


@pytest.mark.parametrize(
    ("body", "construct"),
    [
        ("while a > b:\n    a = a - 1\nreturn a", "while a > b"),
        ("return tl.sort(a, 0)", "tl.sort(a, 0)"),
        ("return a ^ b", "a ^ b"),
        ("for i in range(0, a):\n    if i > b:\n        return i\nreturn a", "for i in range(0, a)"),
        ("return a @ b", "a @ b"),
    ],
)
def test_an_unsupported_construct_is_named(body, construct):
    with pytest.raises(UnsupportedConstructError) as raised:
        extracted(body, *numbers())
    file = sources_of.path_of(PLACE)
    assert str(raised.value).startswith(f"{file}:")
    assert construct in str(raised.value)


def test_a_variable_that_was_renamed_is_named():
    _, extraction = extracted("c = a\nreturn c", *numbers())
    with pytest.raises(UnsupportedConstructError, match="function: no variable d was assigned"):
        extraction.local("function", "d")
