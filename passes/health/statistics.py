"""The sums that a row is made of: a gradient's squares and counts in one `reduce`, two more sums.

A reduction of several operands reads the gradient once and stores nothing in between, on any
backend; for counts by themselves XLA:CPU would store the comparisons. Squares alone are summed
alone: XLA:CPU has a kernel for that, twice as fast as if they came along with the counts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ...ir.builder import Builder
from ...ir.graph import Value
from ...ir.types import is_complex

FLOAT, COUNT = np.dtype(np.float32), np.dtype(np.int32)
_WIDE = (np.dtype(np.float64), np.dtype(np.complex128))


@dataclass(frozen=True, eq=False)
class Sums:
    """Of a gradient, `[rows]` each: squares; numbers of zeros, of NaNs, of infinities; runs.

    A branch may not be taken, and the body of a loop runs more than once: sums are over all runs.
    """

    squares: Value
    zeros: Value
    nans: Value
    infinities: Value
    runs: Value

    @property
    def all(self) -> tuple[Value, ...]:
        """As a loop carries them."""
        return self.squares, self.zeros, self.nans, self.infinities, self.runs


def sum_dtype(x: Value) -> np.dtype[np.generic]:
    """What squares of `x` are added up in: float64 where `x` has as many bits, else float32."""
    return np.dtype(np.float64) if x.dtype in _WIDE else FLOAT


def sums_of(
    b: Builder, gradient: Value | None, parameter: Value | None, update: Value | None, rows: int
) -> tuple[Sums | None, Value | None, Value | None]:
    """Emit the sums of a gradient, and the squares of a parameter and of its update, `f[rows]`.

    `rows` is the length of the leading axis where each of its slices has a row, else 0: one row.
    Nothing of it is differentiated by whoever differentiates the step.
    """
    sums = None
    gradient, parameter, update = (
        None if x is None else b.one("stop_gradient", x) for x in (gradient, parameter, update)
    )
    if gradient is not None:
        squares, zeros, nans, infinities = _summed(b, _of_gradient(b, gradient), rows)
        sums = Sums(squares, zeros, nans, infinities, b.full(squares.shape, 1, COUNT))
    old, change = (None if x is None else _squares(b, x, rows) for x in (parameter, update))
    return sums, old, change


def widened(b: Builder, x: Value) -> Value:
    """What squares are made of; a complex number as it is."""
    return x if is_complex(x.dtype) else b.convert(x, sum_dtype(x))


def _square(b: Builder, x: Value) -> Value:
    """|x|^2."""
    if is_complex(x.dtype):
        return b.add(b.square(b.real(x)), b.square(b.imag(x)))
    return b.square(widened(b, x))


def _squares(b: Builder, x: Value, rows: int) -> Value:
    """Sum of |x|^2, `[rows]` or `[1]`."""
    total = b.reduce_sum(_square(b, x), range(1 if rows else 0, x.ndim))
    return total if rows else b.reshape(total, (1,))


def _of_gradient(b: Builder, x: Value) -> list[Value]:
    """Squares, and 1 where there is a zero, a NaN, an infinity; a complex number may hold both."""
    size = widened(b, x)
    if is_complex(x.dtype):
        size = b.add(b.one("abs", b.real(x)), b.one("abs", b.imag(x)))
    endless = b.eq(b.one("abs", size), np.inf)
    tests = b.eq(size, 0), b.ne(size, size), endless
    return [_square(b, x), *(b.convert(test, COUNT) for test in tests)]


def _summed(b: Builder, terms: Sequence[Value], rows: int) -> list[Value]:
    """Sums by slices of the leading axis, `[rows]`, or of all as `[1]`.

    By the leading axis first in any case: these sums run in parallel, and are more exact.
    """
    ndim = terms[0].ndim
    if ndim > 1:
        terms = _reduced(b, terms, range(1, ndim))
    if rows:
        return list(terms)
    return [b.reshape(x, (1,)) for x in (_reduced(b, terms, (0,)) if ndim else terms)]


def _reduced(b: Builder, terms: Sequence[Value], axes: Sequence[int]) -> Sequence[Value]:
    sub = b.nested()
    scalars = [x.type.with_shape(()).strong() for x in terms]
    left, right = ([sub.value(t) for t in scalars] for _ in range(2))
    outputs = [sub.add(x, y) for x, y in zip(left, right, strict=True)]
    region = sub.graph("sums", (*left, *right), outputs)
    starts = [b.literal(0, t.dtype) for t in scalars]
    return b.emit("reduce", (*terms, *starts), {"dimensions": tuple(axes)}, (region,))
