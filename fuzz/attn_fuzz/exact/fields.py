"""Arithmetic modulo two primes, in which rational numbers and powers of 2 are exact.

Values are numbers modulo VALUES, exponents are numbers modulo EXPONENTS, and VALUES = 2 * EXPONENTS + 1. Modulo VALUES, 2 is a
square, so its powers repeat after exactly EXPONENTS steps. This makes `power_of_two` a function from exponents to values with

    power_of_two(a + b) = power_of_two(a) * power_of_two(b),  power_of_two(0) = 1,  power_of_two(1) = 2

for all a and b. A float is a dyadic rational m * 2^k, and 2 is invertible modulo both primes: `of_floats` maps the floats into
both, such that sums, products and quotients of floats map to those of their images. Two different rational numbers have one
image modulo VALUES with a chance of 2^-31.

All arrays are uint64, of numbers below their modulus. Both primes are below 2^31, so a product does not wrap around.
"""

import numpy as np

EXPONENTS = 1_073_740_571
VALUES = 2 * EXPONENTS + 1
_CHUNK = 10  # bits of an exponent that one table takes
_MIN_POWER, _MAX_POWER = -1130, 1024  # a float64 is m * 2^k with m below 2^53 and k in this range
_HALF = np.uint64(16)


def _tables() -> list[np.ndarray]:
    return [
        np.array([pow(2, digit << shift, VALUES) for digit in range(1 << _CHUNK)], np.uint64) for shift in range(0, 30, _CHUNK)
    ]


_POWERS = _tables()
_OF_POWER = {
    modulus: np.array([pow(2, k, modulus) for k in range(_MIN_POWER, _MAX_POWER)], np.uint64) for modulus in (EXPONENTS, VALUES)
}


def of_floats(numbers: np.ndarray, modulus: int) -> np.ndarray:
    """The images of float64 numbers. Infinities and NaN have the image 0."""
    mantissa, power = np.frexp(np.where(np.isfinite(numbers), numbers, 0.0))
    integers = np.ldexp(mantissa, 53).astype(np.int64) % modulus
    return times(integers.astype(np.uint64), _OF_POWER[modulus][power - (53 + _MIN_POWER)], modulus)


def of_integers(numbers: np.ndarray, modulus: int) -> np.ndarray:
    """The images of integers of any dtype."""
    if numbers.dtype.kind in "bu":
        return numbers.astype(np.uint64) % np.uint64(modulus)
    return (numbers.astype(np.int64) % modulus).astype(np.uint64)


def plus(x: np.ndarray, y: np.ndarray, modulus: int) -> np.ndarray:
    return (x + y) % np.uint64(modulus)


def minus(x: np.ndarray, modulus: int) -> np.ndarray:
    """0 - x."""
    return (np.uint64(modulus) - x) % np.uint64(modulus)


def times(x: np.ndarray, y: np.ndarray, modulus: int) -> np.ndarray:
    return x * y % np.uint64(modulus)


def inverse(x: np.ndarray, modulus: int) -> np.ndarray:
    """1 / x; 0 where x is 0. The quotients of a tile have few different denominators, and each is inverted once."""
    different, places = np.unique(x, return_inverse=True)
    result, power = np.ones_like(different), different
    exponent = modulus - 2  # Fermat: x^(modulus - 1) = 1
    while exponent:
        if exponent & 1:
            result = times(result, power, modulus)
        power = times(power, power, modulus)
        exponent >>= 1
    return result[places].reshape(x.shape)


def power_of_two(exponents: np.ndarray) -> np.ndarray:
    """2^x modulo VALUES, of x modulo EXPONENTS."""
    mask = np.uint64((1 << _CHUNK) - 1)
    low, middle, high = (table[exponents >> np.uint64(i * _CHUNK) & mask] for i, table in enumerate(_POWERS))
    return times(times(low, middle, VALUES), high, VALUES)


def power(x: np.ndarray, exponents: np.ndarray) -> np.ndarray:
    """x^e modulo VALUES for e modulo EXPONENTS: a function with x^(a + b) = x^a * x^b and (x * y)^a = x^a * y^a.

    It is the power of integers for even e. A square root of x may have the other sign, because it is the power of x^2 to e / 2:
    squares repeat after EXPONENTS steps.
    """
    result, base = np.ones(np.broadcast_shapes(x.shape, exponents.shape), np.uint64), times(x, x, VALUES)
    rest = times(exponents, np.array((EXPONENTS + 1) // 2, np.uint64), EXPONENTS)
    while rest.any():
        result = np.where(rest & np.uint64(1), times(result, base, VALUES), result)
        base, rest = times(base, base, VALUES), rest >> np.uint64(1)
    return result


def total(x: np.ndarray, axis: int, modulus: int) -> np.ndarray:
    """The sum along an axis of fewer than 2^33 numbers."""
    return x.sum(axis) % np.uint64(modulus)


def product(x: np.ndarray, y: np.ndarray, modulus: int) -> np.ndarray:
    """The matrix product of [..., M, K] and [..., K, N], K below 2^18. Sums of products of 16 bits are exact in float64."""
    (x1, x0), (y1, y0) = ((_float(each >> _HALF), _float(each & np.uint64(0xFFFF))) for each in (x, y))
    high, low = np.matmul(x1, y1), np.matmul(x0, y0)
    middle = np.matmul(x1 + x0, y1 + y0) - high - low
    prime = np.uint64(modulus)
    high, middle, low = (part.astype(np.uint64) % prime for part in (high, middle, low))
    return ((high * np.uint64((1 << 32) % modulus)) % prime + (middle << _HALF) + low) % prime


def _float(x: np.ndarray) -> np.ndarray:
    return x.astype(np.float64)


def scrambled(x: np.ndarray, modulus: int, key: int) -> np.ndarray:
    """A fixed function of x that looks random (the finaliser of SplitMix64, Steele, Lea and Flood, OOPSLA 2014)."""
    z = x + np.uint64(key * 0x9E3779B97F4A7C15 % (1 << 64))
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return (z ^ (z >> np.uint64(31))) % np.uint64(modulus)
