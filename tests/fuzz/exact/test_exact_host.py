"""Exact mode on torch: attention is the formula however torch computes it, a fault shows, what is not carried has a name."""

import numpy as np
import pytest
import torch
from attn_fuzz.exact import algebra, call, elements
from attn_fuzz.exact.operators import CARRIED
from attn_fuzz.exact.quantities import Quantities
from attn_fuzz.exact.refusal import NotCarriedError

from tests.fuzz.exact.by_hand import SCALE, by_hand, tensors

KEYS = 23


def parts_of(keys, count):
    return torch.arange(keys).tensor_split(count)


def closed(q, k, v, out, lse, lost):
    scores = (q.double() @ k.double().T * SCALE).masked_fill(lost, -torch.inf)
    out.copy_(torch.softmax(scores, -1) @ v.double())
    lse.copy_(scores.logsumexp(-1))


def with_a_maximum(q, k, v, out, lse, lost):
    scores = torch.where(lost, -torch.inf, SCALE * torch.einsum("qd,kd->qk", q.float(), k.float()))
    maximum = scores.amax(-1, keepdim=True)
    weights = torch.exp(scores - maximum)
    total = weights.sum(-1, keepdim=True)
    torch.div(weights @ v.float(), total, out=(result := torch.empty(out.shape)))
    out[:] = result
    lse[:] = (maximum + total.log()).squeeze(-1)


def in_tiles(q, k, v, out, lse, lost):
    """Online, in base 2, with operators that write into what they read."""
    largest = torch.full((len(q), 1), -1e20)
    total, acc = torch.zeros(len(q), 1), torch.zeros(out.shape)
    for tile in parts_of(len(k), 4):
        scores = torch.addmm(torch.zeros(()), q.float(), k[tile].float().T, alpha=SCALE * float(np.log2(np.e)))
        scores.masked_fill_(lost[tile], float("-inf"))
        new = torch.maximum(largest, scores.max(dim=1, keepdim=True).values)
        decay, weights = torch.exp2(largest - new), torch.exp2(scores - new)
        total.mul_(decay).add_(weights.sum(1, keepdim=True))
        acc.mul_(decay).addmm_(weights, v[tile].float())
        largest = new
    out.copy_(acc / total)
    lse.copy_(((largest + total.log2()) * float(np.log(2))).view(-1))


def merged(q, k, v, out, lse, lost):
    """Parts with logarithms of base 2, one of which sees nothing and holds NaN."""
    outs, lses = torch.full((4, *out.shape), torch.nan), torch.full((4, *lse.shape), torch.inf)
    for i, part in enumerate(parts_of(len(k), 3)):
        closed(q, k[part], v[part], outs[i], lses[i], lost[part])
    lses = lses.double() / torch.tensor(2.0, dtype=torch.float64).log()
    natural = torch.where(lses.isfinite(), lses * float(np.log(2)), -torch.inf)
    total = natural.logsumexp(0)
    shares = torch.exp(natural - total)[..., None] * outs
    out.copy_(torch.where(natural[..., None] == -torch.inf, 0, shares).sum(0))
    lse.copy_(total)


def moved(q, k, v, out, lse, lost):
    """Rows are gathered, dealt and put together, as floats and as the bits of floats."""
    order = torch.randperm(len(k), generator=torch.Generator().manual_seed(1))
    k, v, lost = k[order], v.index_select(0, order), lost[order]
    cache = torch.zeros(2, len(k) + 3, *k.shape[1:], dtype=k.dtype)
    cache[:, 3:] = torch.stack([k, v])
    results, lses = torch.empty(2, *out.shape), torch.empty(2, *lse.shape)
    for i in range(2):
        closed(q[i : i + 1], cache[0, 3:], cache[1, 3:], results[i, :1], lses[i, :1], lost)
    whole = torch.cat([results[1, :1], results[0, :1]]).flip(0).repeat(1, 2)[:, : out.shape[1]]
    bits, stored = torch.zeros(out.shape, dtype=torch.int16), whole.to(out.dtype)
    bits[torch.tensor([1, 0])] = stored.view(torch.int16)[torch.tensor([1, 0])]
    out.view(torch.int16).copy_(bits)
    lse.scatter_(0, torch.tensor([1, 0]), lses[:, 0].gather(0, torch.tensor([1, 0])))


WAYS = [closed, with_a_maximum, in_tiles, merged, moved]


def followed(attention, keys=KEYS, lost_key=None):
    """The values of `out` and of exp(lse)."""
    q, k, v, out, lse = tensors(keys)
    running = call.Call(Quantities({"scale": SCALE}), (q, k, v), (out, lse))
    with call.following(running):
        attention(q, k, v, out, lse, torch.arange(keys) == (-1 if lost_key is None else lost_key))
    held = running.memory.elements(out), algebra.exp(running.memory.elements(lse))
    return held[0].value.tolist(), held[1].value.tolist()


@pytest.mark.parametrize("attention", WAYS)
def test_attention_that_torch_computes_is_the_formula(attention):
    assert followed(attention) == by_hand(KEYS)


@pytest.mark.parametrize("attention", WAYS)
def test_a_key_that_torch_loses_shows(attention):
    wrong, wrong_lse = followed(attention, lost_key=11)
    right, right_lse = by_hand(KEYS)
    assert all(one != other for rows in zip(wrong, right, strict=True) for one, other in zip(*rows, strict=True))
    assert all(one != other for one, other in zip(wrong_lse, right_lse, strict=True))


def test_tensors_that_have_a_size_and_no_memory_are_left_alone():
    """Plans of calls are made of tensors on the meta device."""

    def planned(q, k, v, out, lse, lost):
        shape = q.float().to("meta") * 2
        shape.new_empty(3).copy_(lse.sum()).zero_()
        torch.cat([torch.ones_like(out, device="meta"), shape]).sum()
        closed(q, k, v, out, lse, lost)

    assert followed(planned) == by_hand(KEYS)


def test_a_wrong_base_shows():
    def of_another_base(q, k, v, out, lse, lost):
        closed(q, k, v, out, lse, lost)
        lse.mul_(float(np.log2(np.e)))

    out, lse = followed(of_another_base)
    assert out == by_hand(KEYS)[0]
    assert all(one != other for one, other in zip(lse, by_hand(KEYS)[1], strict=True))


def made(*shape, seed=0):
    """Integers and halves: torch computes with them exactly."""
    return torch.randint(-8, 9, shape, generator=torch.Generator().manual_seed(seed)).double() / 2


X, Y, SQUARE, OTHER = made(3, 4), made(3, 4, seed=1), made(4, 4, seed=2), made(4, 4, seed=3)
POWERS = torch.tensor([[1.0, 2.0, 0.25, -4.0]]).double()
BATCH, OTHERS = made(2, 3, 4, seed=4), made(2, 4, 3, seed=5)
EXACT = {
    "_to_copy": lambda: X.to(torch.float16),
    "nextafter": lambda: torch.nextafter(X, X),
    "add": lambda: torch.add(X, Y[0], alpha=2),
    "sub": lambda: X - Y * 1,
    "rsub": lambda: torch.rsub(X, 2, alpha=4),
    "mul": lambda: X * Y,
    "div": lambda: X / POWERS,
    "neg": lambda: -X,
    "abs": lambda: X.abs(),
    "reciprocal": lambda: POWERS.reciprocal(),
    "pow": lambda: torch.cat([X**2, POWERS**-1, torch.pow(2, Y * 2)]),
    "ldexp": lambda: torch.ldexp(X, torch.tensor([1, -2, 3, 0])),
    "addcmul": lambda: torch.addcmul(X, X, Y, value=3),
    "sum": lambda: torch.cat([X.sum(1), X.sum(0, keepdim=True)[0], X.sum()[None], BATCH.sum((0, 2))]),
    "mean": lambda: torch.cat([SQUARE.mean(1), BATCH.mean((0, 2), keepdim=True).flatten()[:0]]),
    "amax": lambda: BATCH.amax((0, 2), keepdim=True),
    "amin": lambda: BATCH.amin(-1),
    "max": lambda: torch.cat([X.max()[None], X.max(1).values, X.max(0, keepdim=True).values[0], torch.max(X, Y)[0]]),
    "min": lambda: torch.cat([X.min()[None], X.min(1).values, X.min(0, keepdim=True).values[0], torch.min(X, Y)[0]]),
    "sort": lambda: X.sort(0, descending=True).values,
    "topk": lambda: X.topk(2, dim=1).values,
    "maximum": lambda: torch.maximum(X, Y),
    "minimum": lambda: torch.minimum(X, Y),
    "fmax": lambda: torch.fmax(X, Y),
    "fmin": lambda: torch.fmin(X, Y),
    "clamp": lambda: X.clamp(-1, 2.5),
    "clamp_min": lambda: X.clamp_min(0),
    "clamp_max": lambda: X.clamp_max(0),
    "nan_to_num": lambda: torch.where(X > 0, X, torch.nan).nan_to_num(1.5),
    "mm": lambda: X @ SQUARE,
    "bmm": lambda: BATCH @ OTHERS,
    "mv": lambda: X @ SQUARE[0],
    "dot": lambda: torch.dot(X[0], Y[0]),
    "addmm": lambda: torch.addmm(X, Y, SQUARE, beta=2, alpha=-1),
    "baddbmm": lambda: torch.baddbmm(made(2, 3, 3), BATCH, OTHERS, beta=0.5),
}
"""By the name of an operator, what torch computes exactly with it, of integers and halves."""


def held(compute):
    """The result of torch, and its elements."""
    running = call.Call(Quantities({}), (X, Y, SQUARE, OTHER, POWERS, BATCH, OTHERS))
    with call.following(running):
        result = compute()
    return result, running.memory.elements(result)


@pytest.mark.parametrize("name", EXACT)
def test_where_torch_is_exact_its_result_is_the_element(name):
    result, found = held(EXACT[name])
    expected = elements.of_floats(result.double().numpy())
    assert found.lacks == ""
    assert (found.value == expected.value).all()
    assert (found.exponent == expected.exponent).all()


TRANSCENDENT = {
    "exp": lambda: X.exp(),
    "exp2": lambda: X.exp2(),
    "log": lambda: X.exp().log(),
    "log2": lambda: X.exp2().log2(),
    "tanh": lambda: X.tanh(),
    "logaddexp": lambda: torch.logaddexp(X, Y),
    "logaddexp2": lambda: torch.logaddexp2(X, Y),
    "logsumexp": lambda: BATCH.logsumexp((0, 2)),
    "_softmax": lambda: BATCH.softmax(1),
    "_log_softmax": lambda: BATCH.log_softmax(-1),
}


def test_every_operator_that_is_carried_is_tested():
    assert {*EXACT, *TRANSCENDENT} == set(CARRIED)


@pytest.mark.parametrize("name", TRANSCENDENT)
def test_the_order_of_an_element_is_about_what_torch_computes(name):
    result, found = held(TRANSCENDENT[name])
    np.testing.assert_allclose(found.order, result.numpy(), rtol=1e-12)


def same(one, other):
    assert one.value is not None
    assert (one.value == other.value).all()


def test_laws_of_exponentials_and_logarithms():
    same(held(lambda: X.exp().log().exp())[1], held(lambda: X.exp())[1])
    same(held(lambda: X.logsumexp(1).exp())[1], held(lambda: X.exp().sum(1))[1])
    same(held(lambda: torch.logaddexp2(X, Y).exp2())[1], held(lambda: X.exp2() + Y.exp2())[1])
    same(held(lambda: X.log_softmax(1).exp())[1], held(lambda: X.exp() / X.exp().sum(1, keepdim=True))[1])
    same(held(lambda: X.softmax(0).sum(0))[1], elements.of_floats(np.ones(4)))


def test_the_logarithm_of_an_empty_sum_is_minus_infinity():
    _, found = held(lambda: X[:, :0].logsumexp(1))
    assert (found.order == -np.inf).all()


def numpys(x):
    return torch.from_numpy(np.ascontiguousarray(x.numpy()) * 1.0001)


@pytest.mark.parametrize(
    ("compute", "why"),
    [
        (lambda: (X * Y).exp().sqrt(), "what torch's sqrt has computed"),
        (lambda: (X * 0.5).exp().exp(), "a number that comes of exp2"),
        (lambda: X.exp().int().double() * 2, "integers that torch's _to_copy has made of computed numbers"),
        (lambda: (X.exp().view(torch.int64) + 1).view(torch.float64) + 0, "integers that torch's add has made"),
        (lambda: numpys(X)[1, :1] * 2, "which is no product of"),
        (lambda: numpys(torch.arange(1.0, 100)) * 2, "floats that neither the call was given nor torch has computed"),
        (lambda: X * 0.123456789, "the number 0.123456789, which is no product of"),
    ],
)
def test_a_function_that_torch_computes_otherwise_is_refused_by_name(compute, why):
    result, found = held(compute)
    assert found.value is None
    assert why in found.lacks
    assert result.isfinite().all()


def test_a_number_of_python_is_not_made_of_computed_floats():
    with pytest.raises(NotCarriedError, match=r"torch's item\(\) of a computed number"):
        held(lambda: X * X.exp().sum().item())


def test_floats_that_are_written_again_are_no_element_of_before():
    def twice():
        written = (X * 0.25).exp()
        written.zero_()
        written[0].copy_(X[1])
        return written

    _, found = held(twice)
    assert (found.value[0] == elements.of_floats(X[1].numpy()).value).all()
    assert not found.value[1:].any()
