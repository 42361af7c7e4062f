"""Operands that do not fit: the own shape rules say what was wanted and what was found."""

import numpy as np
import pytest

from backpass.ir.builder import Builder
from backpass.ir.errors import MissingRuleError, ShapeError
from backpass.ir.graph import Value
from backpass.ir.ops import OPS, _by_name
from backpass.ir.types import ArrayType
from ops.cases_indexing import dims, flags, scatter_dims

F32, I32 = np.dtype(np.float32), np.dtype(np.int32)


def f32(*shape: int) -> Value:
    return Value(ArrayType(shape, F32))


def i32(*shape: int) -> Value:
    return Value(ArrayType(shape, I32))


MISFITS = [
    ("add", [f32(2), f32(3)], {}, r"one shape, got f32\[2\] and f32\[3\]"),
    ("add", [f32(2), i32(2)], {}, r"one dtype, got f32\[2\] and i32\[2\]"),
    ("select_n", [i32(2), f32(2), f32(3)], {}, "cases of one type"),
    (
        "broadcast_in_dim",
        [f32(2)],
        {"shape": (3, 3), "broadcast_dimensions": (1,)},
        r"broadcast f32\[2\] to \[3, 3\] along dimensions \(1,\)",
    ),
    ("broadcast_in_dim", [f32(2)], {"shape": (2,), "broadcast_dimensions": ()}, "broadcast"),
    ("reshape", [f32(2, 3)], {"new_sizes": (5,)}, r"as many elements as f32\[2,3\]"),
    ("reshape", [f32(2, 3)], {"new_sizes": (-2, -3)}, "as many elements"),
    ("reshape", [f32(2, 3)], {"new_sizes": (3, 2), "dimensions": (1, 0)}, "transpose first"),
    ("stack", [f32(2), f32(3)], {"axis": 0}, r"one type, got f32\[2\], f32\[3\]"),
    ("stack", [f32(2), i32(2)], {"axis": 0}, "operands of one type"),
    ("tile", [f32(4)], {"reps": (-1,)}, "one count for each dimension"),
    ("split", [f32(4)], {"sizes": (-1, 5), "axis": 0}, "sizes that add up"),
    ("concatenate", [f32(2), f32(2)], {"dimension": 1}, "arrays alike elsewhere"),
    ("concatenate", [f32(2), i32(2)], {"dimension": 0}, "arrays alike elsewhere"),
    ("pad", [f32(4), f32()], {"padding_config": ((0, 0, -1),)}, "negative size"),
    ("pad", [f32(4), i32()], {"padding_config": ((0, 0, 0),)}, "of the operand's dtype"),
    ("pad", [f32(4), f32()], {"padding_config": ()}, "1 triples"),
    *(
        ("slice", [f32(4)], {"start_indices": lo, "limit_indices": hi, "strides": by}, "outside of")
        for lo, hi, by in [((-1,), (3,), None), ((3,), (2,), None), ((0,), (4,), (0,))]
    ),
    ("squeeze", [f32(2, 1)], {"dimensions": (0,)}, "dimensions of size 1"),
    ("squeeze", [f32(2, 1)], {"dimensions": (2,)}, "distinct dimensions"),
    ("transpose", [f32(2, 3)], {"permutation": (0, 0)}, "wants a permutation"),
    ("rev", [f32(2)], {"dimensions": (0, 0)}, "distinct dimensions"),
    (
        "slice",
        [f32(4)],
        {"start_indices": (1,), "limit_indices": (5,), "strides": None},
        r"lies outside of f32\[4\]",
    ),
    ("regularized_incomplete_beta", [f32(2), f32(), f32(3)], {}, "operands of one shape"),
    ("regularized_incomplete_beta", [f32(2), f32(2), f32(3)], {}, "operands of one shape"),
    ("regularized_incomplete_beta", [f32(), f32(2), f32(3)], {}, "operands of one shape"),
    ("pad", [f32(4), f32(1)], {"padding_config": ((0, 0, 0),)}, "a scalar of the operand's dtype"),
    ("pad", [f32(4), f32()], {"padding_config": ((-3, -2, 0),)}, "negative size"),
    ("concatenate", [f32(2, 3), f32(2, 4)], {"dimension": 0}, "arrays alike elsewhere"),
    ("split", [f32(4)], {"sizes": (2, 3), "axis": 0}, "sizes that add up"),
    ("unstack", [f32(4)], {"axis": 1}, "distinct dimensions"),
    ("tile", [f32(4)], {"reps": (2, 2)}, "one count for each dimension"),
    ("iota", [], {"dtype": I32, "shape": (3,), "dimension": 1}, "distinct dimensions"),
    ("reduce_sum", [f32(4)], {"axes": (1,)}, r"reduce_sum wants distinct dimensions of f32\[4\]"),
    ("reduce_max", [f32(4)], {"axes": (0, 0)}, "distinct dimensions"),
    ("reduce_and", [f32(4)], {"axes": (0,)}, "wants integers or booleans"),
    ("argmax", [f32(2, 0)], {"axes": (1,), "index_dtype": I32}, "one axis that is not empty"),
    ("cumsum", [f32(4)], {"axis": 1, "reverse": False}, "distinct dimensions"),
    (
        "dot_general",
        [f32(2, 3), f32(4, 5)],
        {"dimension_numbers": (((1,), (0,)), ((), ()))},
        "matching contracted dimensions",
    ),
]


@pytest.mark.parametrize("op, operands, attrs, message", MISFITS, ids=lambda x: str(x)[:40])
def test_misfit_is_a_shape_error(op, operands, attrs, message) -> None:
    with pytest.raises(ShapeError, match=message):
        Builder(OPS).emit(op, operands, attrs)


# What just fits: op, operands, attributes, shapes.
FITS = [
    ("tile", [f32(4)], {"reps": (0,)}, [(0,)]),
    ("slice", [f32(4)], {"start_indices": (4,), "limit_indices": (4,), "strides": None}, [(0,)]),
    ("slice", [f32(4)], {"start_indices": (0,), "limit_indices": (4,), "strides": (3,)}, [(2,)]),
    ("pad", [f32(4), f32()], {"padding_config": ((-1, -3, 0),)}, [(0,)]),
    ("pad", [f32(0), f32()], {"padding_config": ((1, 2, 3),)}, [(3,)]),
    ("pad", [f32(2), f32()], {"padding_config": ((0, 0, 3),)}, [(5,)]),
    ("split", [f32(4)], {"sizes": (0, 4), "axis": 0}, [(0,), (4,)]),
    ("reshape", [f32(0, 3)], {"new_sizes": (7, 0)}, [(7, 0)]),
    ("broadcast_in_dim", [f32(1)], {"shape": (0, 2), "broadcast_dimensions": (0,)}, [(0, 2)]),
    ("regularized_incomplete_beta", [f32(), f32(1), f32(3)], {}, [(3,)]),
    ("regularized_incomplete_beta", [f32(1), f32(), f32(3)], {}, [(3,)]),
    ("regularized_incomplete_beta", [f32(3), f32(3), f32(1)], {}, [(3,)]),
    ("stack", [f32(4), f32(4)], {"axis": 1}, [(4, 2)]),
    ("unstack", [f32(4, 2)], {"axis": 1}, [(4,), (4,)]),
]


@pytest.mark.parametrize("op, operands, attrs, shapes", FITS)
def test_what_just_fits(op, operands, attrs, shapes) -> None:
    assert [out.shape for out in Builder(OPS).emit(op, operands, attrs)] == shapes


# An op by what it has no derivative: op, operands, attributes, operand asked for, message.
UNDIFFERENTIABLE = [
    ("polygamma", [f32(2), f32(2)], {}, 0, "its order"),
    ("zeta", [f32(2), f32(2)], {}, 0, "its exponent"),
    ("regularized_incomplete_beta", [f32(2)] * 3, {}, 1, "shapes a and b"),
    (
        "svd",
        [f32(2, 3)],
        {
            "full_matrices": True,
            "compute_uv": True,
            "subset_by_index": None,
            "algorithm": None,
        },
        0,
        "full_matrices",
    ),
]


@pytest.mark.parametrize("op, operands, attrs, wrt, message", UNDIFFERENTIABLE)
def test_missing_derivative_is_told(op, operands, attrs, wrt, message) -> None:
    b = Builder(OPS)
    cts = [Value(out.type) for out in b.emit(op, operands, attrs)]
    with pytest.raises(MissingRuleError, match=message):
        OPS[op].vjp(b, b.nodes[0], cts, [i == wrt for i in range(len(operands))])


@pytest.mark.parametrize(
    "wanted", [(True, False, False), (False, True, False), (False, False, True)]
)
def test_of_all_singular_vectors_those_values_have_a_derivative(wanted) -> None:
    """Each of the factors alone: s, U, V^H."""
    attrs = {"full_matrices": True, "compute_uv": True, "subset_by_index": None, "algorithm": None}
    b = Builder(OPS)
    outputs = b.emit("svd", [f32(2, 3)], attrs)
    cts = [Value(out.type) if on else None for out, on in zip(outputs, wanted, strict=True)]
    if wanted[0]:
        (found,) = OPS["svd"].vjp(b, b.nodes[0], cts, [True])
        assert found.shape == (2, 3)
    else:
        with pytest.raises(MissingRuleError, match="full_matrices"):
            OPS["svd"].vjp(b, b.nodes[0], cts, [True])


def test_scatter_mul_by_updates_wants_unique_indices() -> None:
    attrs = {"dimension_numbers": scatter_dims(dims((1,), (0,), (0,)))} | flags("clip")
    b = Builder(OPS)
    (out,) = b.emit("scatter-mul", [f32(7, 3), i32(5, 1), f32(5, 3)], attrs)
    with pytest.raises(MissingRuleError, match="pass unique_indices=True"):
        OPS["scatter-mul"].vjp(b, b.nodes[0], [Value(out.type)], [False, False, True])


def test_an_op_listed_twice_is_an_error() -> None:
    with pytest.raises(ValueError, match="ops listed twice: add"):
        _by_name((OPS["add"], OPS["mul"], OPS["add"]))
