"""Wrong rules, one at a time: what a slip of the pen would make of each.

A rule is spoilt either in its result (`result`: a sign, a factor, an operand left out) or in one
thing that it asks of the builder (`asking`: another op, another attribute, a sum left out).
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass
from typing import Any

from backpass.ir.builder import Builder
from backpass.ir.ops import OPS

Spoil = Callable[[Any], Any]


@dataclass(frozen=True)
class Mutation:
    """A wrong rule of `op`; `spoil` makes it from the right one, a VJP or a linearise rule."""

    op: str
    label: str
    spoil: Spoil

    def __str__(self) -> str:
        return f"{self.op}: {self.label}"

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The record in the table holds the wrong rule; put right at the end."""
        op = OPS[self.op]
        before = {name: getattr(op, name) for name in ("vjp", "linearise")}
        if op.vjp is not None:  # a linearise rule beside it is but a quicker way
            object.__setattr__(op, "vjp", self.spoil(op.vjp))
            object.__setattr__(op, "linearise", None)
        else:
            object.__setattr__(op, "linearise", _linearise(op.linearise, self.spoil))
        try:
            yield
        finally:
            for name, rule in before.items():
                object.__setattr__(op, name, rule)


def _linearise(rule: Any, spoil: Spoil) -> Any:
    """A linearise rule whose pullback is spoilt as a VJP would be."""

    def wrong(b: Any, node: Any, needs: Sequence[bool], ad: Any) -> Any:
        outputs, pullback = rule(b, node, needs, ad)
        spoilt = spoil(lambda b, node, cts, needs: pullback(b, cts))
        return outputs, lambda b, cts: spoilt(b, node, cts, needs)

    return wrong


# In the result


def result(change: Callable[[Builder, list[Any]], list[Any]]) -> Spoil:
    def spoil(rule: Any) -> Any:
        return lambda b, node, cts, needs: change(b, list(rule(b, node, cts, needs)))

    return spoil


def scaled(factor: float, position: int | None = None) -> Spoil:
    """One operand's cotangent, or all, times a factor."""

    def change(b: Builder, cts: list[Any]) -> list[Any]:
        return [
            ct if ct is None or position not in (None, i) else b.mul(ct, factor)
            for i, ct in enumerate(cts)
        ]

    return result(change)


def dropped(position: int) -> Spoil:
    """No cotangent for one operand."""
    return result(lambda b, cts: [None if i == position else ct for i, ct in enumerate(cts)])


def reordered(order: Sequence[int]) -> Spoil:
    """Cotangents of operands in each other's place, where both are asked for and alike."""

    def change(b: Builder, cts: list[Any]) -> list[Any]:
        swapped = [cts[i] for i in order]
        alike = all(
            x is not None and y is not None and x.type == y.type
            for x, y in zip(cts, swapped, strict=False)
        )
        return [*swapped, *cts[len(order) :]] if alike else cts

    return result(change)


# In what is asked of the builder


def asking(**methods: Callable[..., Any]) -> Spoil:
    """`asking(cos=lambda b, x: Builder.sin(b, x))`: methods of the builder that lie."""
    lying = type("Lying", (Builder,), {"__slots__": (), **methods})

    def spoil(rule: Any) -> Any:
        def wrong(b: Builder, node: Any, cts: Any, needs: Any) -> Any:
            liar = copy(b)
            liar.__class__ = lying
            return rule(liar, node, cts, needs)

        return wrong

    return spoil


def emitting(op: str, **changes: Any) -> Spoil:
    """Each node of `op` that the rule emits has other attributes: values, or functions of them."""

    def emit(
        b: Builder, name: Any, inputs: Any, attrs: Any = None, regions: Any = (), **rest: Any
    ) -> Any:
        found = dict(attrs or {})
        if getattr(name, "name", name) == op:
            for key, change in changes.items():
                found[key] = change(found[key]) if callable(change) else change
        return Builder.emit(b, name, inputs, found, regions, **rest)

    return asking(emit=emit)


def regions_reversed(op: str) -> Spoil:
    """The regions of each node of `op` in the reverse order: a branch for another."""

    def emit(b: Builder, name: Any, inputs: Any, attrs: Any = None, regions: Any = ()) -> Any:
        mixed = tuple(reversed(regions)) if getattr(name, "name", name) == op else regions
        return Builder.emit(b, name, inputs, attrs or {}, mixed)

    return asking(emit=emit)


def same(b: Builder, x: Any, *rest: Any, **attrs: Any) -> Any:
    """Leave the operand as it is."""
    return x


def first_of(b: Builder, ct: Any, axes: Any) -> Any:
    """A slice where a sum belongs."""
    for axis in sorted(axes, reverse=True):
        shape = (*ct.shape[:axis], *ct.shape[axis + 1 :])
        ct = Builder.reshape(b, Builder.slice_in_dim(b, ct, 0, 1, axis), shape)
    return ct


def whole_for_half(b: Builder, x: Any, y: Any) -> Any:
    """A tie that is not split."""
    return x if isinstance(y, float) and y == 0.5 else Builder.mul(b, x, y)


def shifted_pad(b: Builder, x: Any, fill: Any, config: Any) -> Any:
    """Off by one along the first dimension that has room."""
    moved = list(map(tuple, config))
    for i, (lo, hi, mid) in enumerate(moved):
        if hi > 0:
            moved[i] = (lo + 1, hi - 1, mid)
            break
    return Builder.pad(b, x, fill, moved)


def _less(b: Builder, x: Any, y: Any) -> Any:
    return Builder.sub(b, x, 0 if y == 1 else y)


SIGN = scaled(-1.0)

MUTATIONS: tuple[Mutation, ...] = (
    # elementwise.py
    Mutation("sin", "sine for cosine", asking(cos=lambda b, x: Builder.sin(b, x))),
    Mutation("tanh", "output not squared", asking(square=same)),
    Mutation("logistic", "factor 2", scaled(2.0)),
    Mutation("neg", "sign", SIGN),
    Mutation("sub", "sign of the second", asking(neg=same)),
    Mutation("mul", "operands swapped", reordered((1, 0))),
    Mutation("mul", "no sum over what was broadcast", asking(reduce_sum=first_of)),
    Mutation("div", "sign of the second", asking(neg=same)),
    Mutation("pow", "exponent not lowered", asking(sub=_less)),
    Mutation("pow", "no gradient by the exponent", dropped(1)),
    Mutation("integer_pow", "exponent not lowered",
             asking(integer_pow=lambda b, x, y: Builder.integer_pow(b, x, y + 1))),
    Mutation("max", "tie not split", asking(mul=whole_for_half)),
    Mutation("atan2", "operands swapped", reordered((1, 0))),
    Mutation("rsqrt", "factor -2 for -1/2", scaled(4.0)),
    Mutation("abs", "sign", asking(ge=lambda b, x, y: Builder.le(b, x, y))),
    Mutation("abs", "no conjugate", asking(conj=same)),
    Mutation("imag", "sign", asking(neg=same)),
    Mutation("conj", "no conjugate", asking(conj=same)),
    Mutation("select_n", "first case gets all", asking(zeros=lambda b, like: Builder.ones(b, like))),
    Mutation("clamp", "bounds let through", asking(lt=lambda b, x, y: Builder.ge(b, x, y))),
    # special.py
    Mutation("igamma", "sign by x", scaled(-1.0, 1)),
    Mutation("polygamma", "order not raised", asking(add=same)),
    # structural.py
    Mutation("broadcast_in_dim", "no sum", asking(reduce_sum=first_of)),
    Mutation("transpose", "permutation not inverted",
             asking(transpose=lambda b, x, order: Builder.transpose(
                 b, x, sorted(range(len(order)), key=lambda i: order[i])))),
    Mutation("slice", "off by one", asking(pad=shifted_pad)),
    Mutation("rev", "not reversed", asking(rev=same)),
    Mutation("concatenate", "parts swapped", reordered((1, 0))),
    Mutation("pad", "sign of the fill", scaled(-1.0, 1)),
    # reductions.py, cumulative.py
    Mutation("reduce_max", "ties not split", asking(div=same)),
    Mutation("reduce_prod", "sign", SIGN),
    Mutation("cumsum", "same direction", emitting("cumsum", reverse=lambda r: not r)),
    Mutation("cummax", "ties not split", asking(mul=whole_for_half)),
    Mutation("cumlogsumexp", "sign of the gap", asking(exp=lambda b, x: Builder.exp(b, Builder.neg(b, x)))),
    # indexing.py, sorting.py, windows.py
    Mutation("gather", "factor 2", scaled(2.0)),
    Mutation("scatter", "overwritten operand keeps its cotangent", asking(zeros=lambda b, x: Builder.ones(b, x))),
    Mutation("scatter-add", "no gradient by the updates", dropped(2)),
    Mutation("scatter-sub", "sign of the updates", asking(neg=same)),
    Mutation("dynamic_slice", "factor 2", scaled(2.0)),
    Mutation("dynamic_update_slice", "no gradient by the update", dropped(1)),
    Mutation("sort", "payload swapped with the key", reordered((1, 0))),
    Mutation("top_k", "sign", SIGN),
    Mutation("reduce_window_sum", "dilation left out",
             emitting("reduce_window_sum", window_dilation=lambda d: tuple(1 for _ in d),)),
    Mutation("reduce_window_max", "smallest for largest", asking(eq=lambda b, x, y: Builder.le(b, x, y))),
    # contraction.py, ragged.py
    Mutation("dot_general", "no gradient by the second", dropped(1)),
    Mutation("dot_general", "result not transposed back",
             asking(transpose=lambda b, x, order: x if len(set(x.shape)) == 1
                    else Builder.transpose(b, x, order))),
    Mutation("conv_general_dilated", "kernel not reversed", asking(rev=same)),
    Mutation("ragged_dot_general", "factor 2 by the matrices", scaled(2.0, 1)),
    # linalg.py, factor.py, solves.py, fourier.py
    Mutation("cholesky", "diagonal not halved", asking(mul=whole_for_half)),
    Mutation("triangular_solve", "sign by the matrix", asking(neg=same)),
    Mutation("lu", "sign", SIGN),
    Mutation("qr", "sign inside", asking(sub=lambda b, x, y: Builder.add(b, x, y))),
    Mutation("eigh", "gaps turned", asking(sub=lambda b, x, y: Builder.sub(b, y, x))),
    Mutation("svd", "projection left out", asking(sub=lambda b, x, y: x if x.shape == y.shape and x.ndim
                                                  and x.shape[-2:] != (x.shape[-1],) * 2 else Builder.sub(b, x, y))),
    Mutation("fft", "no conjugate, no factor", asking(conj=same)),
    Mutation("custom_linear_solve", "sign", SIGN),
    # control.py, scan.py
    Mutation("scan", "not reversed", emitting("scan", reverse=lambda r: not r)),
    Mutation("scan", "no gradient by the first constant", dropped(0)),
    Mutation("cond", "branches swapped", regions_reversed("cond")),
    Mutation("cond", "factor 2 by the operands", scaled(2.0, 1)),
    Mutation("remat2", "factor 2", scaled(2.0)),
    Mutation("custom_vjp_call", "sign", SIGN),
    Mutation("custom_jvp_call", "factor 2", scaled(2.0)),
    Mutation("optimization_barrier", "no gradient by the first", dropped(0)),
)  # fmt: skip
