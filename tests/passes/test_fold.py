"""Constants are folded where the result is small: text in, text out, and JAX's own numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from backpass.ir import OPS, Builder, Graph, Literal, evaluate, verify
from backpass.passes import Fold
from backpass.passes.fold import FOLDABLE, LARGEST
from passes.texts import assert_rewrites, compiled, graph, ops

CASES = {
    "literals": (
        "%0: f32[]",
        "%1: f32[] = mul(2.0:f32, 3.0:f32)\n%2: f32[] = add(%0, %1)\nreturn %2",
        "%2: f32[] = add(%0, 6.0:f32)\nreturn %2",
    ),
    "chain": (
        "%0: i32[]",
        """
        %1: i32[] = add(1:i32, 2:i32)
        %2: bool[] = lt(%1, 4:i32)
        %3: i32[] = select_n(%2, 7:i32, %1)
        %4: i32[] = add(%0, %3)
        return %4
        """,
        "%4: i32[] = add(%0, 3:i32)\nreturn %4",
    ),
    "inputs are not known": ("%0: f32[]", "%1: f32[] = add(%0, 1.0:f32)\nreturn %1", None),
    "no rule": ("%0: f32[]", "%1: f32[] = sin(1.0:f32)\n%2: f32[] = add(%0, %1)\nreturn %2", None),
    "integer division by zero": (
        "%0: i32[]",
        "%1: i32[] = div(1:i32, 0:i32)\n%2: i32[] = add(%0, %1)\nreturn %2",
        None,
    ),
    "in a region": (
        "%0: f32[3]",
        """
        %1: f32[3] = jit(%0) {name="a"}
          graph a(%0: f32[3]) {
            %1: f32[] = sub(2.0:f32, 3.0:f32)
            %2: f32[3] = mul(%0, %1)
            return %2
          }
        return %1
        """,
        """
        %1: f32[3] = jit(%0) {name="a"}
          graph a(%0: f32[3]) {
            %2: f32[3] = mul(%0, -1.0:f32)
            return %2
          }
        return %1
        """,
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_rule(name):
    assert_rewrites(Fold(), *CASES[name])


NUMBERS = np.array([-3, -1, 0, 1, 2, 7])
AWKWARD = np.array([-np.inf, np.nan, -0.0, 0.0, 3e9, -300.7], np.float32)
ATTRS = {
    "convert_element_type": [{"new_dtype": np.dtype(d), "weak_type": False} for d in ("int32", "float32", "bool", "int8")],
    "reshape": [{"new_sizes": (3, 2)}],
    "squeeze": [{"dimensions": ()}],
    "transpose": [{"permutation": (0,)}],
    "integer_pow": [{"y": n} for n in (0, 1, 2, 3, -1)],
}  # fmt: skip


def operands(op, numbers):
    count = {"select_n": 3}.get(op)
    x = numbers
    if count:
        return [NUMBERS > 0, x, x[::-1]]
    unary = "neg not square sign stop_gradient copy convert_element_type reshape squeeze".split()
    unary += ["transpose", "integer_pow"]
    return [x] if op in unary else [np.repeat(x, 6), np.tile(x, 6)]


VALUES = {
    **{d: NUMBERS.astype(jnp.dtype(d)) for d in ("int32", "uint8", "float32", "bool", "bfloat16")},
    "extreme integers": np.array([-(2**31), 2**31 - 1, -1, 1, 2**30 + 1, 3], np.int32),
    "awkward": AWKWARD,
    "awkward bfloat16": AWKWARD.astype(jnp.bfloat16),
}


@pytest.mark.filterwarnings("ignore:overflow:RuntimeWarning")
@pytest.mark.parametrize("values", VALUES)
@pytest.mark.parametrize("op", FOLDABLE)
def test_numbers_are_those_of_jax(op, values):
    """Each op on awkward numbers: bit for bit what evaluating the op gives."""
    tried = 0
    for attrs in ATTRS.get(op, [{}]):
        b = Builder(OPS)
        try:
            xs = [b.constant(np.asarray(x)) for x in operands(op, VALUES[values])]
            out = b.emit(op, xs, attrs)
            given = b.graph("f", (), out)
            expected = evaluate(given)
        except (TypeError, ValueError):
            continue  # JAX has no such op for this dtype
        tried += 1
        folded = Fold()(given)
        verify(folded)
        for ours, theirs in zip(evaluate(folded), expected, strict=True):
            assert ours.dtype == theirs.dtype
            ours, theirs = (np.asarray(x).astype(np.float64) for x in (ours, theirs))
            np.testing.assert_allclose(ours, theirs, rtol=1e-6 if op == "integer_pow" else 0)
            if op not in ("max", "min"):  # which leave the sign of a zero open
                np.testing.assert_array_equal(np.signbit(ours), np.signbit(theirs))
        assert Fold()(folded) is folded
    floats_only, bits_only = {"square"}, {"not", "and", "or"}
    if values == "int32" or (values == "float32" and op not in bits_only):
        assert tried or op in floats_only


def test_large_integers_are_divided_exactly():
    with jax.enable_x64(True):
        b = Builder(OPS)
        x, y = b.constant(np.int64([2**60 + 1, -(2**60) - 3])), b.constant(np.int64([1, 2]))
        given = b.graph("f", (), [b.div(x, y)])
        np.testing.assert_array_equal(evaluate(Fold()(given))[0], evaluate(given)[0])


def test_small_arrays_are_folded_and_large_ones_are_not():
    def fun(n):
        b = Builder(OPS)
        x = b.constant(np.arange(n, dtype=np.float32))
        return b.graph("f", (), [b.mul(x, 2.0)])

    assert ops(Fold()(fun(LARGEST))) == ["constant", "constant"]
    large = fun(LARGEST + 1)
    assert Fold()(large) is large


def test_scalars_become_literals():
    folded = Fold()(graph("%0: f32[]", "%1: f32[] = neg(2.0:f32)\nreturn %1"))
    assert isinstance(folded.outputs[0], Literal)
    assert folded.outputs[0].data == np.float32(-2)


def test_no_fold_across_the_input_of_a_region():
    """What a region is given from outside is not a constant to it."""

    def fun(x):
        return (
            jax.lax.scan(lambda c, _: (c * jnp.float32(2) + 1, c), jnp.float32(1), None, 3)[0] * x
        )

    given = compiled(fun, np.float32(1))
    assert float(evaluate(Fold()(given), np.float32(1))[0]) == 15.0


def test_empty_graph():
    given = Graph("f", (), (), ())
    assert Fold()(given) is given
