"""The arithmetic of a kernel's floats, on elements: a result is exact, or it is refused.

    sums, products, quotients, tl.dot    in both fields
    exp2, exp                            exponent -> value: exp2(a + b) = exp2(a) * exp2(b) holds for all a and b
    log2, log                            value -> logarithm, of which exp2 gives the value back
    maxima, comparisons, abs             by `order`: one of the operands; which one a maximum takes cancels exactly
    tanh                                 a fixed odd function: equal elements have equal results

log2(e) is no rational number. Here it is a fixed element LOG2E, and ln(2) is 1 / LOG2E: a kernel that uses a power of e on one
side and a power of 2 on the other agrees with itself only if its factors are right.
"""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from attn_fuzz.exact import fields
from attn_fuzz.exact.elements import Elements, as_floats, lacking, logarithm_of, of_floats, selected, without_logarithm
from attn_fuzz.exact.fields import EXPONENTS, VALUES
from attn_fuzz.exact.refusal import NotCarriedError

_NO_EXPONENT = "a number that comes of exp2, or of nothing known, used as an exponent"
MIN_EXPONENT = -(2.0**20)
"""Numbers below it are taken for -infinity: kernels initialise maxima, and mask logits, with numbers such as -1e20."""
_ROOTS = [numerator * pow(denominator, -1, EXPONENTS) % EXPONENTS for denominator in (2, 4, 8) for numerator in (1, -1)]
"""Factors of logarithms that stand for roots. In a field not every number has a root."""
_PRODUCT = "a product of two logarithms"
LOG2E = Elements(
    np.array([np.log2(np.e)]),
    fields.scrambled(np.array([1], np.uint64), VALUES, 1),
    fields.scrambled(np.array([1], np.uint64), EXPONENTS, 2),
)


def add(x: Elements, y: Elements) -> Elements:
    result = _in_fields(x, y, x.order + y.order, fields.plus)
    if x.logarithm is None and y.logarithm is None:
        return result
    shape = result.order.shape
    (c, r), (d, s) = logarithm_of(x), logarithm_of(y)
    c, r, d, s = (np.broadcast_to(part, shape) for part in (c, r, d, s))
    factor = np.where(c == 0, d, c)
    # c log r + d log s = c log(r * s^(d / c))
    share = fields.times(d, fields.inverse(factor, EXPONENTS), EXPONENTS)
    product = fields.times(np.where(c == 0, 1, r).astype(np.uint64), _power(s, share), VALUES)
    factor = np.where(product == 1, 0, factor).astype(np.uint64)
    return without_logarithm(
        Elements(result.order, None, result.exponent, (factor, product), result.lacks or "a logarithm used as a value")
    )


def negative(x: Elements) -> Elements:
    value, exponent = (
        None if part is None else fields.minus(part, modulus) for part, modulus in ((x.value, VALUES), (x.exponent, EXPONENTS))
    )
    logarithm = None if x.logarithm is None else (fields.minus(x.logarithm[0], EXPONENTS), x.logarithm[1])
    return Elements(-x.order, value, exponent, logarithm, x.lacks)


def subtract(x: Elements, y: Elements) -> Elements:
    return add(x, negative(y))


def multiply(x: Elements, y: Elements) -> Elements:
    result = _in_fields(x, y, x.order * y.order, fields.times)
    if x.logarithm is None and y.logarithm is None:
        return result
    if x.logarithm is not None and y.logarithm is not None:
        return lacking(result, _PRODUCT)
    held, factor = (x, y) if x.logarithm is not None else (y, x)
    assert held.logarithm is not None
    if factor.exponent is None:
        return lacking(result, factor.lacks or _NO_EXPONENT)
    c = np.broadcast_to(fields.times(held.logarithm[0], factor.exponent, EXPONENTS), result.shape)
    logarithm = c, np.broadcast_to(held.logarithm[1], result.shape)
    return without_logarithm(Elements(result.order, None, result.exponent, logarithm, result.lacks))


def divide(x: Elements, y: Elements) -> Elements:
    order = x.order / y.order
    if y.logarithm is not None:
        return lacking(Elements(order), "a quotient by a logarithm")
    value = None if x.value is None or y.value is None else _inverse(y, y.value, VALUES)
    exponent = None if x.exponent is None or y.exponent is None else _inverse(y, y.exponent, EXPONENTS)
    return replace(multiply(x, Elements(1 / y.order, value, exponent, lacks=y.lacks)), order=order)


def _inverse(y: Elements, part: np.ndarray, modulus: int) -> np.ndarray:
    if ((part == 0) & (y.order != 0) & np.isfinite(y.order)).any():
        raise NotCarriedError(f"a quotient by a number that is 0 modulo {modulus}")
    return fields.inverse(part, modulus)


def exp2(x: Elements) -> Elements:
    with np.errstate(over="ignore"):  # a far sink
        order = np.exp2(x.order)
    if (x.order < MIN_EXPONENT).all():
        return of_floats(np.zeros(x.shape))
    if x.exponent is None:
        raise NotCarriedError(f"exp2 of {x.lacks or _NO_EXPONENT}")
    value = fields.power_of_two(x.exponent)
    if x.logarithm is not None:
        c, r = x.logarithm
        if np.isin(c, _ROOTS).any():
            raise NotCarriedError("exp2 of a fraction of a logarithm")
        value = fields.times(value, _power(r, c), VALUES)
    return Elements(order, np.where(x.order < MIN_EXPONENT, np.uint64(0), value))


def _power(r: np.ndarray, c: np.ndarray) -> np.ndarray:
    """r^c, c modulo EXPONENTS. The powers 1, 0 and -1 are those of integers."""
    different = np.unique(c)
    found = np.ones(r.shape, np.uint64)
    for factor in different.tolist():
        match factor:
            case 0:
                continue
            case 1:
                power = r
            case _ if factor == EXPONENTS - 1:
                power = fields.inverse(r, VALUES)
            case _:
                power = fields.power(r, np.array(factor, np.uint64))
        found = np.where(c == factor, power, found)
    return found


def exp(x: Elements) -> Elements:
    return exp2(multiply(x, LOG2E))


def log2(x: Elements) -> Elements:
    order = np.log2(x.order)
    if as_floats(x) is not None and (np.isfinite(order) & (np.exp2(np.rint(order)) == x.order)).all():
        return of_floats(np.rint(order))
    if x.value is None:
        return lacking(Elements(order), x.lacks or "the logarithm of a logarithm")
    return Elements(order, None, np.zeros(x.shape, np.uint64), (np.ones(x.shape, np.uint64), x.value), x.lacks)


def log(x: Elements) -> Elements:
    return replace(multiply(log2(x), LN2), order=np.log(x.order))


def absolute(x: Elements) -> Elements:
    return selected(np.signbit(x.order), negative(x), x)


def larger(x: Elements, y: Elements) -> Elements:
    """The larger of two; a NaN loses against a number."""
    return selected((x.order >= y.order) | np.isnan(y.order), x, y)


def smaller(x: Elements, y: Elements) -> Elements:
    """The smaller of two; a NaN loses against a number."""
    return selected((x.order <= y.order) | np.isnan(y.order), x, y)


def sum_of(x: Elements, axis: int) -> Elements:
    """The sum along an axis."""
    order = x.order.sum(axis)
    if x.logarithm is not None:
        return lacking(Elements(order), "a sum of logarithms along an axis")
    value, exponent = (
        None if part is None else fields.total(part, axis, modulus)
        for part, modulus in ((x.value, VALUES), (x.exponent, EXPONENTS))
    )
    return Elements(order, value, exponent, lacks=x.lacks)


def largest(x: Elements, axis: int) -> Elements:
    """The largest along an axis; a NaN loses against a number."""
    return _chosen(x, np.where(np.isnan(x.order), -np.inf, x.order).argmax(axis), axis)


def smallest(x: Elements, axis: int) -> Elements:
    """The smallest along an axis; a NaN loses against a number."""
    return _chosen(x, np.where(np.isnan(x.order), np.inf, x.order).argmin(axis), axis)


def _chosen(x: Elements, places: np.ndarray, axis: int) -> Elements:
    index = np.expand_dims(places, axis)
    return x.moved(lambda part: np.take_along_axis(part, index, axis).squeeze(axis))


def dot(x: Elements, y: Elements) -> Elements:
    """The matrix product of [..., M, K] and [..., K, N]."""
    order = np.matmul(x.order, y.order)
    if x.logarithm is not None or y.logarithm is not None:
        return lacking(Elements(order), "a product of matrices of logarithms")
    return _in_fields(x, y, order, fields.product)


def tanh(x: Elements) -> Elements:
    if x.logarithm is not None or x.exponent is None:
        raise NotCarriedError(f"tanh of {x.lacks or _NO_EXPONENT}")
    value, exponent = (
        None if part is None else _odd(part, modulus) for part, modulus in ((x.value, VALUES), (x.exponent, EXPONENTS))
    )
    return Elements(np.tanh(x.order), value, exponent, lacks=x.lacks)


def _odd(part: np.ndarray, modulus: int) -> np.ndarray:
    there, back = fields.scrambled(part, modulus, 3), fields.scrambled(fields.minus(part, modulus), modulus, 3)
    return fields.plus(there, fields.minus(back, modulus), modulus)


def _in_fields(x: Elements, y: Elements, order: np.ndarray, operation: Callable[..., np.ndarray]) -> Elements:
    value = None if x.value is None or y.value is None else operation(x.value, y.value, VALUES)
    exponent = None if x.exponent is None or y.exponent is None else operation(x.exponent, y.exponent, EXPONENTS)
    return Elements(order, value, exponent, lacks=x.lacks or y.lacks)


LN2 = divide(of_floats(np.ones(1)), LOG2E)
LN2 = replace(LN2, order=np.log([2.0]))
