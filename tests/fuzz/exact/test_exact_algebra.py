"""The arithmetic of exact mode: laws of each operation, against Python's integers and fractions."""

from fractions import Fraction

import numpy as np
import pytest
from attn_fuzz.exact import algebra, elements, fields
from attn_fuzz.exact.elements import Elements
from attn_fuzz.exact.quantities import Quantities
from attn_fuzz.exact.refusal import NotCarriedError
from hypothesis import given
from hypothesis import strategies as st

from tests.fuzz.exact.by_hand import image

P, Q = fields.VALUES, fields.EXPONENTS
INFINITY = float("inf")
numbers = st.floats(allow_nan=False, allow_infinity=False, width=32)
exponents = st.floats(-500_000, 500_000, width=32)
small = st.floats(-100, 100, width=32)
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # a launch is without them


def block(*floats):
    return elements.of_floats(np.array(floats, np.float64))


def same(x: Elements, y: Elements):
    for name in ("value", "exponent"):
        mine, other = getattr(x, name), getattr(y, name)
        assert (mine is None) == (other is None)
        if mine is not None:
            np.testing.assert_array_equal(mine, other)


def is_prime(number):
    return number > 1 and all(number % divisor for divisor in range(2, int(number**0.5) + 1))


def test_the_moduli_are_primes_and_2_has_the_order_of_the_exponents():
    assert is_prime(Q)
    assert is_prime(P)
    assert P == 2 * Q + 1 < 2**31
    assert pow(2, Q, P) == 1


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_a_float_is_its_rational_number(number):
    assert [int(fields.of_floats(np.array([number]), modulus)[0]) for modulus in (P, Q)] == [image(number, P), image(number, Q)]


@given(numbers, numbers)
def test_sums_products_and_quotients_are_those_of_rational_numbers(x, y):
    results = {"add": Fraction(x) + Fraction(y), "subtract": Fraction(x) - Fraction(y), "multiply": Fraction(x) * Fraction(y)}
    if y:
        results["divide"] = Fraction(x) / Fraction(y)
    for name, expected in results.items():
        found = getattr(algebra, name)(block(x), block(y))
        assert (int(found.value[0]), int(found.exponent[0])) == (image(expected, P), image(expected, Q)), name


@given(exponents, exponents)
def test_exp2_makes_products_of_sums(x, y):
    product = algebra.multiply(algebra.exp2(block(x)), algebra.exp2(block(y)))
    assert algebra.exp2(algebra.add(block(x), block(y))).value == product.value


def test_exp2_of_integers_are_powers_of_2():
    integers = np.arange(-40.0, 41)
    same(algebra.exp2(block(*integers)), Elements(integers, fields.of_floats(2.0**integers, P)))


def test_a_running_maximum_cancels():
    x, low, high = block(0.3), block(-5.25), block(17.1)
    steps = algebra.multiply(algebra.exp2(algebra.subtract(x, low)), algebra.exp2(algebra.subtract(low, high)))
    same(steps, algebra.exp2(algebra.subtract(x, high)))


def test_minus_infinity_has_no_weight_and_its_difference_is_nan():
    weights = algebra.exp2(algebra.subtract(block(-INFINITY, -1e20, 3.0), block(1.5)))
    assert (weights.value == 0).tolist() == [True, True, False]
    assert np.isnan(algebra.subtract(block(-INFINITY), block(-INFINITY)).order).all()


def test_logarithms_are_taken_back_by_exp2_and_cancel():
    x, y = algebra.exp2(block(0.7)), algebra.exp2(block(-2.9))
    same(algebra.exp2(algebra.log2(x)), x)
    same(algebra.exp(algebra.log(x)), x)
    total = algebra.add(algebra.log2(x), block(3.5))
    same(algebra.exp2(total), algebra.multiply(x, algebra.exp2(block(3.5))))
    same(algebra.exp2(algebra.add(algebra.log2(x), algebra.log2(y))), algebra.multiply(x, y))
    same(algebra.exp2(algebra.subtract(algebra.log2(x), algebra.log2(y))), algebra.divide(x, y))
    same(algebra.exp2(algebra.subtract(total, total)), algebra.exp2(block(0.0)))


@given(small, small, st.floats(0.125, 4, width=32))
def test_powers_of_logarithms_make_products_of_sums(x, y, factor):
    """A logarithm that is multiplied by a wrong base is no refusal: it is another number."""
    x, y, factor = algebra.exp2(block(x)), algebra.exp2(block(y)), algebra.multiply(block(factor), algebra.LOG2E)

    def power(base, exponent):
        return algebra.exp2(algebra.multiply(algebra.log2(base), exponent))

    same(power(algebra.multiply(x, y), factor), algebra.multiply(power(x, factor), power(y, factor)))
    same(power(x, algebra.add(factor, factor)), algebra.multiply(power(x, factor), power(x, factor)))
    same(power(x, block(3.0)), algebra.multiply(x, algebra.multiply(x, x)))


def test_logarithms_of_two_bases_are_added():
    x, y = algebra.exp2(block(0.7)), algebra.exp2(block(-2.9))
    total = algebra.add(algebra.log2(x), algebra.log(y))
    same(algebra.exp2(algebra.subtract(total, algebra.log(y))), x)
    assert algebra.exp2(total).value != algebra.multiply(x, y).value


def test_the_bases_of_exponentials_differ_by_log2_e():
    x = block(0.4, -1.7)
    same(algebra.exp(x), algebra.exp2(algebra.multiply(x, algebra.LOG2E)))
    same(algebra.log(algebra.exp(x)), algebra.multiply(algebra.log2(algebra.exp(x)), algebra.LN2))


def test_maxima_choose_an_element_and_lose_no_number_to_nan():
    x, y = block(1.5, np.nan, -INFINITY), block(0.25, 2.0, -7.0)
    np.testing.assert_array_equal(algebra.larger(x, y).value, block(1.5, 2.0, -7.0).value)
    np.testing.assert_array_equal(algebra.smaller(x, y).value[:2], block(0.25, 2.0).value)
    assert algebra.largest(block(3.0, np.nan, 5.0), 0).value == block(5.0).value[0]


def test_matrix_products_are_those_of_integers():
    rng = np.random.default_rng(0)
    for modulus in (P, Q):
        x, y = rng.integers(0, modulus, (3, 700), np.uint64), rng.integers(0, modulus, (700, 5), np.uint64)
        expected = (x.astype(object) @ y.astype(object)) % modulus
        assert (fields.product(x, y, modulus) == expected).all()


def test_tanh_is_a_function_and_odd():
    x = block(0.5, -0.5, 0.5)
    found = algebra.tanh(x)
    assert found.exponent[0] == found.exponent[2]
    same(algebra.negative(found)[:1], found[1:2])


@pytest.mark.parametrize(
    ("operation", "message"),
    [
        (lambda w: algebra.exp2(w), "comes of exp2"),
        (lambda w: algebra.exp2(algebra.multiply(algebra.log2(w), block(0.5))), "a fraction of a logarithm"),
        (lambda w: algebra.exp2(algebra.multiply(algebra.log2(w), algebra.log2(w))), "product of two logarithms"),
        (lambda w: np.sqrt(w), "numpy.sqrt"),
        (lambda w: np.cumsum(w), "numpy.cumsum"),
    ],
)
def test_an_operation_without_an_exact_result_is_refused(operation, message):
    with pytest.raises(NotCarriedError, match=message):
        operation(algebra.exp2(block(0.3, 0.4)))


SCALE, CAP, K_SCALE = 0.0883883461356163, 30.0, 0.71
NAMED = Quantities({"scale": SCALE, "logits_soft_cap": CAP, "k_scale": K_SCALE})
LOG2E = float(np.log2(np.e))


@pytest.mark.parametrize(
    ("number", "factors"),
    [
        (SCALE, [SCALE]),
        (float(np.float32(SCALE)), [SCALE]),
        (SCALE * LOG2E, [SCALE, "log2e"]),
        (float(np.float32(SCALE) * np.float32(K_SCALE)), [SCALE, K_SCALE]),
        (SCALE * K_SCALE / CAP, [SCALE, K_SCALE, 1 / Fraction(CAP)]),
        (-2 * LOG2E, [-2, "log2e"]),
        (0.6931471805599453, ["ln2"]),
        (0.5, [0.5]),
        (2.0**-126, [2.0**-126]),
        (-1e20, [-1e20]),
    ],
)
def test_numbers_of_the_host_are_products_of_named_quantities(number, factors):
    expected = block(1.0)
    for factor in factors:
        known = {"log2e": algebra.LOG2E, "ln2": algebra.LN2}.get(factor) if isinstance(factor, str) else None
        if known is None:
            known = Elements(np.ones(1), np.array([image(factor, P)], np.uint64), np.array([image(factor, Q)], np.uint64))
        expected = algebra.multiply(expected, known)
    same(NAMED.element(number), expected)


def test_a_number_that_is_no_product_may_decide_a_maximum_and_nothing_else():
    unknown = NAMED.element(0.123456789)
    assert algebra.larger(block(3.0), unknown).value == block(3.0).value
    with pytest.raises(NotCarriedError, match=r"0\.123456789, which is no product of log2"):
        algebra.exp2(algebra.multiply(block(1.5), unknown))
