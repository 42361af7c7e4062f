"""Cases of the element-wise and special functions."""

from collections.abc import Iterator

import jax
import jax.extend.core.primitives as primitives
import numpy as np

from ops.draws import bools, complexes, ints, positive, real
from ops.harness import Case

EVERYWHERE = (-2.0, 2.0)
# Where each function is smooth.
UNARY = {
    **dict.fromkeys("neg exp exp2 expm1 sin cos tan atan sinh cosh tanh asinh".split(), EVERYWHERE),
    **dict.fromkeys("square logistic erf erfc copy bessel_i0e bessel_i1e".split(), EVERYWHERE),
    **dict.fromkeys("log log2 sqrt rsqrt cbrt lgamma digamma".split(), (0.5, 3.0)),
    **dict.fromkeys("asin acos atanh erf_inv".split(), (-0.7, 0.7)),
    "log1p": (-0.5, 2.0),
    "acosh": (1.5, 3.0),
    "one_minus_square": EVERYWHERE,
    **dict.fromkeys("sign floor ceil stop_gradient is_finite".split(), EVERYWHERE),
}
COMPLEX = "neg exp sin cos tan sinh cosh tanh log sqrt rsqrt square log1p expm1 logistic".split()


def exists(op: str) -> bool:
    """Some primitives are newer than the oldest JAX that we support."""
    return op not in ("log2", "one_minus_square", "polynomial") or hasattr(primitives, f"{op}_p")


def unary() -> Iterator[Case]:
    for op, (low, high) in UNARY.items():
        if exists(op):
            yield Case(op, (real(3, 4, low=low, high=high),))
    for shape in ((), (1,), (0, 3)):
        yield Case("exp", (real(*shape),))
        yield Case("digamma", (positive(*shape),))
    for op in COMPLEX:
        yield Case(op, (complexes(3),))
    for y in (0, 1, 2, 3, -1, -2):
        yield Case("integer_pow", (positive(3),), {"y": y}, f"x^{y}")
    yield Case("integer_pow", (complexes(3),), {"y": 3}, "complex")
    yield Case("integer_pow", (np.array([0.0, 1.0]),), {"y": 2}, "at 0", kinks=True)
    narrow = {"exponent_bits": 8, "mantissa_bits": 7}
    yield Case("reduce_precision", (real(3, 4),), narrow, kinks=True)
    rounding = jax.lax.RoundingMethod.TO_NEAREST_EVEN
    yield Case("round", (real(3),), {"rounding_method": rounding})
    yield Case("abs", (np.array([-1.5, 2.0, 0.5]),))
    yield Case("abs", (np.array([0.0, -1.0]),), label="at 0", kinks=True)
    yield Case("abs", (complexes(3),))
    yield Case("real", (complexes(3),))
    yield Case("imag", (complexes(3),))
    yield Case("conj", (complexes(3),), {"input_dtype": np.dtype(complex)})
    yield Case("conj", (real(3),), {"input_dtype": np.dtype(float)})
    yield Case("complex", (real(3), real(3, seed=1)))
    for op in "not population_count clz".split():
        yield Case(op, (ints(3),))
    for new in (np.float32, np.complex128, np.int32):
        attrs = {"new_dtype": np.dtype(new), "weak_type": False}
        yield Case("convert_element_type", (real(3),), attrs, np.dtype(new).name, kinks=True)
    attrs = {"new_dtype": np.dtype(float), "weak_type": False}
    yield Case("convert_element_type", (ints(3),), attrs)
    yield Case("bitcast_convert_type", (real(3),), {"new_dtype": np.dtype(np.int64)})


# Pairs of operand shapes: alike, a scalar on either side, sizes of one, empty.
PAIRS = (((3, 4), (3, 4)), ((), (3,)), ((3,), ()), ((3, 1), (1, 4)), ((), ()), ((0,), (0,)))

WIDELY = ("mul", "div", "max", "pow")


def binary() -> Iterator[Case]:
    for op in "add add_any sub mul div pow max min atan2 rem nextafter".split():
        for x, y in PAIRS if op in WIDELY else PAIRS[:1]:
            draw = positive if op in ("pow", "rem", "div") else real
            yield Case(op, (draw(*x), draw(*y, seed=1)))
    for op in "add sub mul div pow".split():
        yield Case(op, (complexes(3), complexes(3, seed=2)))
    yield Case("mul", (np.array([0.0, 2.0]), np.array([3.0, 0.0])), label="zeros")
    yield Case("rem", (real(5, low=-9, high=9), real(5, low=1, high=3)), label="signs")
    corners = np.array([0.0, 2.0, -2.0, 0.0]), np.array([2.0, 0.0, 2.0, 1.0])
    yield Case("pow", corners, label="at 0", kinks=True, wrt=(0,), orders=1)
    yield Case("pow", corners, label="exponent at 0", kinks=True, wrt=(1,), orders=1)
    yield Case("pow", (positive(3), np.array([0.0, 1.0, 2.0])), label="exponent 0, second order")
    yield Case("pow", (positive(3, 1), real(1, 4)), label="both broadcast")
    yield Case("pow", (positive(3), ints(3)), label="integer exponent")
    for op in ("max", "min"):
        yield Case(op, (np.array([1.0, 2.0]), np.array([1.0, 3.0])), label="ties", kinks=True)
    for op in "eq ne lt le gt ge".split():
        yield Case(op, (real(3), real(3, seed=1)))
        yield Case(op, (ints(3), ints(3, seed=1)))
        yield Case(op, (ints(3, 1), ints(1, 2)))
    for op in "eq_to lt_to le_to".split():
        yield Case(op, (real(3), real(3, seed=1)))
    for op in "and or xor shift_left shift_right_logical shift_right_arithmetic".split():
        yield Case(op, (ints(3), ints(3, high=4, seed=1)))
    yield Case("mulhi", (ints(3), ints(3, seed=1)))
    for op in "and or xor".split():
        yield Case(op, (bools(3), bools(3, seed=1)))


def selections() -> Iterator[Case]:
    yield Case("select_n", (bools(3, 4), real(3, 4), real(3, 4, seed=1)))
    yield Case("select_n", (bools(), real(3), real(3, seed=1)), label="scalar")
    yield Case("select_n", (ints(4, high=3), real(4), real(4, seed=1), real(4, seed=2)))
    yield Case("clamp", (np.array(-1.0), real(8), np.array(1.0)), peer=False)
    yield Case("clamp", (np.array(-1.0), real(8), np.array(1.0)), label="by x", wrt=(1,))
    yield Case("clamp", (real(8, low=-2, high=-1), real(8), real(8, low=0.5, high=1)))
    edges = np.array(-1.0), np.array([-1.0, 0.0, 1.0]), np.array(1.0)
    yield Case("clamp", edges, label="at a bound", wrt=(1,), kinks=True)
    crossed = np.array([0.5, 0.5, 0.9]), np.array([0.3, 0.9, 0.5]), np.array([0.4, 0.4, 0.5])
    yield Case("clamp", crossed, label="bounds crossed", kinks=True)


def special() -> Iterator[Case]:
    yield Case("bessel_i1e", (np.array([0.0, 1.0]),), label="at 0", kinks=True, orders=1)
    yield Case("polygamma", (np.array([0.0, 1.0, 2.0]), positive(3)), wrt=(1,))
    yield Case("zeta", (real(3, low=2, high=4), positive(3)), wrt=(1,), peer=False)
    yield Case("igamma", (positive(3), positive(3, seed=1)), orders=1)
    yield Case("igammac", (positive(3), positive(3, seed=1)), orders=1)
    yield Case("igamma", (positive(3), positive(3, seed=1)), label="by x", wrt=(1,))
    yield Case("igamma_grad_a", (positive(3), positive(3, seed=1)))
    beta = positive(3), positive(3, seed=1), real(3, low=0.1, high=0.9)
    yield Case("regularized_incomplete_beta", beta, wrt=(2,))
    if exists("polynomial"):
        yield Case("polynomial", (real(3), np.array(1.0), np.array(2.0), np.array(3.0)))
        yield Case("polynomial", (real(3), real(3, seed=1)), label="constant")


CASES = (*unary(), *binary(), *selections(), *special())
