"""Attention of a few rows by Python's integers: what exact mode has to give, whatever computes it."""

from fractions import Fraction

import torch
from attn_fuzz.exact import algebra, fields

P, Q = fields.VALUES, fields.EXPONENTS
SCALE = 0.17677669529663687


def tensors(keys, dtype=torch.float16, rows=2, dim=4):
    """q, k and v of random numbers, and memory for out and lse."""
    generator = torch.Generator().manual_seed(keys)
    q, k, v = (torch.randn(n, dim, generator=generator).to(dtype) for n in (rows, keys, keys))
    return q, k, v, torch.empty(rows, dim, dtype=dtype), torch.empty(rows)


def image(number, modulus):
    """A rational number modulo a prime, by Python's integers."""
    number = Fraction(number)
    return number.numerator * pow(number.denominator, -1, modulus) % modulus


def by_hand(keys):
    """The formula of attention by Python's integers: out [rows, dim], and exp(lse) [rows]."""
    q, k, v, *_ = (tensor.double().tolist() for tensor in tensors(keys))
    log2e, outs, totals = int(algebra.LOG2E.exponent[0]), [], []
    for row in q:
        scores = [sum(Fraction(a) * Fraction(b) for a, b in zip(row, key, strict=True)) * Fraction(SCALE) for key in k]
        weights = [pow(2, image(score, Q) * log2e % Q, P) for score in scores]
        total = sum(weights) % P
        sums = [sum(w * image(value[d], P) for w, value in zip(weights, v, strict=True)) for d in range(len(row))]
        outs.append([each * pow(total, -1, P) % P for each in sums])
        totals.append(total)
    return outs, totals
