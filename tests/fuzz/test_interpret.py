"""The interpreter beside JAX: every case of the op table, where NumPy has the primitive."""

import jax
import numpy as np
import pytest

from backpass.ir.ops import OPS
from fuzz.interpret import plain
from fuzz.primitives import NUMPY
from ops.cases import CASES
from ops.harness import Case, no_regions

HELD = [case for case in CASES if case.op in NUMPY]


@pytest.mark.parametrize("op", sorted({case.op for case in HELD}))
def test_numpy_gives_what_jax_gives(op: str) -> None:
    with jax.enable_x64(True):
        found = [_compared(case) for case in HELD if case.op == op]
    assert any(found), "NumPy passes on all of them"


def _compared(case: Case) -> bool:
    args = [np.asarray(x) for x in case.args]
    with np.errstate(all="ignore"):
        ours = plain(case.op, case.attrs, args)
    if ours is None:
        return False
    theirs = OPS[case.op].lower(args, case.attrs, (), no_regions)
    for x, y in zip(ours, theirs, strict=True):
        assert (x.shape, x.dtype) == (y.shape, y.dtype), str(case)
        np.testing.assert_allclose(x, np.asarray(y), rtol=1e-9, atol=1e-12, err_msg=str(case))
    return True
