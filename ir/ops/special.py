"""Special functions: Bessel, gamma and beta families, polynomials.

Where no closed derivative by a parameter is known (the order of `polygamma`, the exponent of
`zeta`, the shapes of the incomplete beta function), asking for it is an error, as in JAX.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from ..errors import MissingRuleError
from ..op import Cts, Op, one_flop, primitive_op
from .elementwise import binary, broadcasting, unary

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ..builder import Builder
    from ..graph import Node, Value


def missing(op: str, operand: str) -> Callable[..., Value]:
    """Rule for an operand by which no derivative is known."""

    def rule(b: Builder, g: Value, o: Value, *inputs: Value, **attrs: Any) -> Value:
        raise MissingRuleError(f"{op} has no derivative by {operand}; stop the gradient there")

    return rule


def _bessel_i1e(b: Builder, g: Value, o: Value, x: Value) -> Value:
    """i0e(x) - i1e(x) (sign(x) + 1/x), and 1/2 at 0."""
    zero = b.eq(x, 0)
    safe = b.select(zero, b.ones(x), x)
    slope = b.sub(b.one("bessel_i0e", safe), b.mul(o, b.add(b.sign(safe), b.div(1, safe))))
    return b.mul(g, b.select(zero, b.full(x.shape, 0.5, x.dtype), slope))


def _gamma_density(b: Builder, a: Value, x: Value) -> Value:
    """e^-x x^(a-1) / gamma(a)."""
    power = b.mul(b.sub(a, 1), b.log(x))
    return b.exp(b.sub(b.sub(power, x), b.one("lgamma", a)))


def _beta_density(b: Builder, p: Value, q: Value, x: Value) -> Value:
    """x^(p-1) (1-x)^(q-1) / B(p, q)."""
    lgamma = b.sub(b.add(b.one("lgamma", p), b.one("lgamma", q)), b.one("lgamma", b.add(p, q)))
    left = b.mul(b.sub(p, 1), b.log(x))
    right = b.mul(b.sub(q, 1), b.one("log1p", b.neg(x)))
    return b.exp(b.sub(b.add(left, right), lgamma))


def _beta(b: Builder, node: Node, cts: Cts, needs: Sequence[bool]) -> Cts:
    (g,), (p, q, x) = cts, node.inputs
    assert g is not None
    if needs[0] or needs[1]:
        raise MissingRuleError(
            "regularized_incomplete_beta has no derivative by its shapes a and b; stop the "
            "gradient there"
        )
    return [None, None, b.unbroadcast(b.mul(g, _beta_density(b, p, q, x)), x)]


def _polynomial(b: Builder, node: Node, cts: Cts, needs: Sequence[bool]) -> Cts:
    """p'(x) for x, x^k for the coefficient a_k."""
    (g,), (x, first, *rest) = cts, node.inputs
    assert g is not None
    found: list[Value | None] = [None, b.unbroadcast(g, first) if needs[1] else None]
    if needs[0] and rest:
        slopes = [b.mul(a, k) for k, a in enumerate(rest, 1)]
        # JAX lowers a polynomial of one coefficient to that coefficient, not broadcast.
        slope = b.emit(node.op, (x, *slopes), node.attrs)[0] if rest[1:] else slopes[0]
        found[0] = b.unbroadcast(b.mul(g, slope), x)
    for k, (a, needed) in enumerate(zip(rest, needs[2:], strict=True), 1):
        power = x if k == 1 else b.integer_pow(x, k)
        found.append(b.unbroadcast(b.mul(g, power), a) if needed else None)
    return found


OPS: tuple[Op, ...] = (
    unary(
        "bessel_i0e",
        lambda b, g, o, x: b.mul(g, b.sub(b.one("bessel_i1e", x), b.mul(b.sign(x), o))),
    ),
    unary("bessel_i1e", _bessel_i1e),
    unary("log2", lambda b, g, o, x: b.div(g, b.mul(x, math.log(2)))),
    unary("one_minus_square", lambda b, g, o, x: b.mul(g, b.mul(x, -2))),
    binary(
        "polygamma",
        missing("polygamma", "its order"),
        lambda b, g, o, m, x: b.mul(g, b.one("polygamma", b.add(m, 1), x)),
    ),
    binary(
        "zeta",
        missing("zeta", "its exponent"),
        lambda b, g, o, x, q: b.mul(g, b.mul(b.neg(x), b.one("zeta", b.add(x, 1), q))),
    ),
    binary(
        "igamma",
        lambda b, g, o, a, x: b.mul(g, b.one("igamma_grad_a", a, x)),
        lambda b, g, o, a, x: b.mul(g, _gamma_density(b, a, x)),
    ),
    binary(
        "igammac",
        lambda b, g, o, a, x: b.neg(b.mul(g, b.one("igamma_grad_a", a, x))),
        lambda b, g, o, a, x: b.neg(b.mul(g, _gamma_density(b, a, x))),
    ),
    primitive_op("igamma_grad_a", broadcasting("igamma_grad_a"), flops=one_flop),
    primitive_op(
        "regularized_incomplete_beta",
        broadcasting("regularized_incomplete_beta"),
        vjp=_beta,
        flops=one_flop,
    ),
    primitive_op("polynomial", broadcasting("polynomial"), vjp=_polynomial, flops=one_flop),
)
