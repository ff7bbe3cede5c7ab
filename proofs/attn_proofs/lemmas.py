"""Lemmas on products and quotients that the proofs assume, proved of multiplication itself: see `attn_proofs.products`."""

from collections.abc import Iterator

import z3
from attn_proofs.theorem import Claim
from attn_proofs.values import integers


def multiples() -> Iterator[Claim]:
    """Two multiples of b > 0 are at least b apart; a product of naturals is one, and no less than a factor."""
    b, q, r, s = integers("b q r s")
    yield Claim("multiples are apart", (b > 0, q < r, r == q + 1 + s, s >= 0), b * q + b <= b * r)
    yield Claim("naturals", (b >= 0, q >= 0), b * q >= 0)
    yield Claim("a factor", (b >= 1, q >= 0), b * q >= q)


def floors() -> Iterator[Claim]:
    """floor(a / b) + floor(c / b) <= floor((a + c) / b) for b > 0, by the definition of a floor and the first lemma."""
    a, b, c, q, r, s, bq, br, bs = integers("a b c q r s bq br bs")
    definition = (b > 0, bq <= a, a < bq + b, br <= c, c < br + b, bs <= a + c, a + c < bs + b)
    apart = z3.Implies(s < q + r, bs + b <= bq + br)
    yield Claim("floors of a sum", (*definition, apart), q + r <= s)
