"""Products and quotients of two unknown numbers: functions with the properties that proofs need.

The solver's own multiplication and division of unknown numbers make it search without end. So `product(a, b)` is a
function of which a proof is told that it distributes over sums (`times` does so when it builds a term) and that two
naturals give one, and that its arguments may change places, and `quotient(a, b)` is one of which it is told, for each
pair of numbers that is divided, and for b > 0:

    b * q <= a < b * q + b                          the definition of a floor
    q < r  implies  b * q + b <= b * r              multiples of b are b apart; 0 is one of them

All of this holds of multiplication, so what is proved of the functions is true of numbers. `lemmas.py` proves the
second line of multiplication itself. A counterexample must hold of multiplication, too: `exactly` says so.
"""

from dataclasses import dataclass, field
from typing import Any

import z3

Term = Any
_QUOTIENT: Any = z3.Function("quotient", z3.IntSort(), z3.IntSort(), z3.IntSort())
_PRODUCT: Any = z3.Function("product", z3.IntSort(), z3.IntSort(), z3.IntSort())


def multiples_are_apart(b: Term, bq: Term, br: Term, q: Term, r: Term) -> Term:
    """The lemma, for two factors and their products with b."""
    return z3.Implies(z3.And(b > 0, q < r), bq + b <= br)


@dataclass
class Products:
    """The products and quotients of a proof. What is known of quotients goes into `assumptions`."""

    assumptions: list[Term]
    _quotients: dict[tuple[int, int], tuple[Term, Term, Term]] = field(default_factory=dict)
    _by_divisor: dict[int, list[Term]] = field(default_factory=dict)
    _products: dict[tuple[int, int], tuple[Term, Term]] = field(default_factory=dict)

    def times(self, a: Term, b: Term) -> Term:
        """a * b."""
        if z3.is_int_value(a) or z3.is_int_value(b):
            return a * b
        for x, y in ((a, b), (b, a)):
            if z3.is_add(x):
                return sum((self.times(part, y) for part in x.children()[1:]), self.times(x.arg(0), y))
            if z3.is_sub(x):
                return self.times(x.arg(0), y) - self.times(x.arg(1), y)
            if z3.is_mul(x) and x.num_args() == 2:
                factor, rest = (x.arg(0), x.arg(1)) if z3.is_int_value(x.arg(0)) else (x.arg(1), x.arg(0))
                return factor * self.times(rest, y)
            if z3.is_app_of(x, z3.Z3_OP_UMINUS):
                return -self.times(x.arg(0), y)
            if z3.is_app_of(x, z3.Z3_OP_ITE):
                return z3.If(x.arg(0), self.times(x.arg(1), y), self.times(x.arg(2), y))
        # one order, whatever the run: so that products of three numbers are one term, too
        *rest, second = sorted((*_factors(a), *_factors(b)), key=lambda term: (term.hash(), term.sexpr()))
        first = rest[0]
        for factor in rest[1:]:
            first = self._product(first, factor)
        return self._product(first, second)

    def _product(self, first: Term, second: Term) -> Term:
        if (first.get_id(), second.get_id()) not in self._products:
            self._products[first.get_id(), second.get_id()] = (first, second)
            self.assumptions.append(z3.Implies(z3.And(first >= 0, second >= 0), _PRODUCT(first, second) >= 0))
            self.assumptions.append(_PRODUCT(first, second) == _PRODUCT(second, first))
        return _PRODUCT(first, second)

    def quotient(self, a: Term, b: Term) -> Term:
        """a // b, a floor; b > 0 is to be assumed or shown elsewhere."""
        if z3.is_int_value(b):
            return a / b
        key = (a.get_id(), b.get_id())
        if key not in self._quotients:
            q = _QUOTIENT(a, b)
            self._quotients[key] = (a, b, q)
            bq = self.times(q, b)
            self.assumptions.append(z3.Implies(b > 0, z3.And(bq <= a, a < bq + b)))
            others = self._by_divisor.setdefault(b.get_id(), [z3.IntVal(0)])
            for other in others:
                br = self.times(other, b)
                self.assumptions += [multiples_are_apart(b, bq, br, q, other), multiples_are_apart(b, br, bq, other, q)]
            others.append(q)
        return self._quotients[key][2]

    def apart(self, b: Term, q: Term, r: Term) -> list[Term]:
        """The lemma about the multiples q * b and r * b, whichever is larger."""
        bq, br = self.times(q, b), self.times(r, b)
        same = z3.Implies(q == r, bq == br)
        return [multiples_are_apart(b, bq, br, q, r), multiples_are_apart(b, br, bq, r, q), same]

    @property
    def quotients(self) -> list[tuple[Term, Term, Term]]:
        """(a, b, a // b) of each division by an unknown number."""
        return list(self._quotients.values())

    @property
    def exactly(self) -> list[Term]:
        """Equations of the products with multiplication."""
        return [_PRODUCT(a, b) == a * b for a, b in self._products.values()]


def _factors(term: Term) -> list[Term]:
    if z3.is_app(term) and term.decl().eq(_PRODUCT):
        return [*_factors(term.arg(0)), *_factors(term.arg(1))]
    return [term]
