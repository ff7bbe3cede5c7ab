"""The elements of numbers of the host: the kernel's constants, and its float arguments.

A float that is short, such as 0.5, 448.0 or 2**-126, is that rational number. Any other float of a kernel is a rounded
result: the host may have multiplied the scale by log2(e) before the launch. So such a float is read as a product of named
quantities of the call, their reciprocals and a power of two, within TOLERANCE. Of a float that is no such product only the
order is
known: it may decide a maximum, and nothing else. If several products are within TOLERANCE of a float, those with the fewest
    factors
are taken. If these differ, the float has only its order.
"""

import itertools
import math
from collections.abc import Iterable, Iterator
from functools import cached_property

import numpy as np
from attn_contract import Layer
from attn_contract.layer import SCALES
from attn_fuzz.exact import algebra
from attn_fuzz.exact.elements import Elements, assembled, joined, lacking, of_floats

TOLERANCE = 4e-7
"""The largest relative distance, of a few roundings to float32."""
SHORT_BITS = 11
"""A float with no more significant bits is a rational number on purpose."""
SHORT_DIGITS = 2
"""A float with no more significant digits, such as -1e20, is a rational number on purpose, too."""
_MAX_DIFFERENT = 64
"""The most different floats that a tensor of the host may hold. Each is looked for among the products."""
_POWERS_OF_TWO = range(-2, 3)


class Quantities:
    """The named quantities of one call.

    Args:
        numbers: floats by name, such as "scale".
        floats: the numbers of tensors that a host may read one by one, such as the sinks. Each stands for itself.
    """

    def __init__(self, numbers: dict[str, float], floats: Iterable[float] = ()) -> None:
        self._numbers = numbers
        self._floats = frozenset(floats)
        self._known: dict[float, Elements] = {}

    def element(self, number: float) -> Elements:
        """[1], the element of a float of the host."""
        if number not in self._known:
            self._known[number] = self._found(number)
        return self._known[number]

    def elements(self, numbers: np.ndarray) -> Elements:
        """[n], the elements of floats [n] of the host."""
        exact = of_floats(numbers)
        mantissas, _ = np.frexp(np.where(np.isfinite(numbers), numbers, 0.0))
        long = (mantissas * 2**SHORT_BITS) % 1 != 0
        if not long.any():
            return exact
        different, places = np.unique(numbers[long], return_inverse=True)
        if len(different) > _MAX_DIFFERENT:
            return lacking(exact, "floats that neither the call was given nor torch has computed")
        read = joined([self.element(each) for each in different.tolist()], np.concatenate)[places]
        return assembled(len(numbers), [(np.flatnonzero(long), read), (np.flatnonzero(~long), exact[~long])])

    def _found(self, number: float) -> Elements:
        for name, named in self._numbers.items():
            if named and number in (named, float(np.float32(named))):
                return self._named[name]
        exact = of_floats(np.array([number], np.float64))
        if _is_short(number) or number in self._floats:
            return exact
        products = list(self._products(number))
        fewest = min((count for count, _, _ in products), default=0)
        fitting = [(names, element) for count, names, element in products if count == fewest]
        if len({_parts(element) for _, element in fitting}) == 1:
            element = fitting[0][1]
            return Elements(np.array([number]), element.value, element.exponent)
        candidates = " or ".join(names for names, _ in fitting) or f"no product of {', '.join(self._named)}"
        return lacking(exact, f"the number {number!r}, which is {candidates}")

    def _products(self, number: float) -> Iterator[tuple[int, str, Elements]]:
        """Products of named quantities near a number: the number of factors, the product in words, and its element."""
        names = list(self._named)
        orders = np.log2([abs(self._named[name].order[0]) for name in names])
        near = np.abs(self._exponents @ orders + self._powers - math.log2(abs(number))) < TOLERANCE / math.log(2)
        for row in np.flatnonzero(near):
            exponents, power = self._exponents[row], int(self._powers[row])
            element = of_floats(np.array([math.copysign(2.0**power, number)]))
            for name, exponent in zip(names, exponents.tolist(), strict=True):
                if exponent > 0:
                    element = algebra.multiply(element, self._named[name])
                elif exponent < 0:
                    element = algebra.divide(element, self._named[name])
                if exponent and self._named[name].order[0] < 0:
                    element = algebra.negative(element)
            words = " * ".join(
                f"{name}^{exponent}" for name, exponent in zip(names, exponents.tolist(), strict=True) if exponent
            )
            yield int(np.abs(exponents).sum()) + (power != 0), f"2^{power} * {words}", element

    @cached_property
    def _named(self) -> dict[str, Elements]:
        found = {name: of_floats(np.array([number])) for name, number in self._numbers.items() if number}
        return {"log2(e)": algebra.LOG2E, **found}

    @cached_property
    def _exponents(self) -> np.ndarray:
        """[products, names]"""
        rows = list(itertools.product((-1, 0, 1), repeat=len(self._named)))
        return np.repeat(np.array(rows), len(_POWERS_OF_TWO), axis=0)

    @cached_property
    def _powers(self) -> np.ndarray:
        return np.tile(np.array(_POWERS_OF_TWO), 3 ** len(self._named))


def of_layer(layer: Layer) -> Quantities:
    """The quantities of a call: the layer's scale and cap, its scales that are one number, and its slopes and sinks."""
    numbers = {"scale": layer.scale}
    usual = layer.head_size**-0.5
    if not math.isclose(layer.scale, usual, rel_tol=2 * TOLERANCE):  # else the two could not be told apart
        numbers["head_size ** -0.5"] = usual  # a wrong scale that code often takes
    if layer.logits_soft_cap is not None:
        numbers["logits_soft_cap"] = layer.logits_soft_cap
    for name in SCALES:
        tensor = getattr(layer, name)
        if tensor is not None and tensor.numel() == 1:
            numbers[name] = float(tensor)
    held = [tensor for tensor in layer.tensors.values() if tensor is not None and tensor.numel() <= _MAX_DIFFERENT]
    return Quantities(numbers, itertools.chain.from_iterable(tensor.double().flatten().tolist() for tensor in held))


def _is_short(number: float) -> bool:
    if not math.isfinite(number):
        return True
    mantissa, _ = math.frexp(number)
    return (mantissa * 2**SHORT_BITS).is_integer() or _digits(repr(number)) <= SHORT_DIGITS


def _digits(text: str) -> int:
    """The significant digits of a decimal number."""
    return len(text.partition("e")[0].replace(".", "").strip("-0"))


def _parts(element: Elements) -> tuple[int, int]:
    assert element.value is not None
    assert element.exponent is not None
    return int(element.value[0]), int(element.exponent[0])
