"""Cases of the structural ops, the reductions and the cumulative ops."""

from collections.abc import Iterator

import jax
import numpy as np
from jax.experimental.layout import Layout
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ops.draws import bools, complexes, distinct, ints, positive, real, tied
from ops.harness import Case


def one(op: str, *shape: int, label: str = "", **attrs) -> Case:
    return Case(op, (real(*shape),), attrs, label)


def structural() -> Iterator[Case]:
    for shape, dims, source in (
        ((2, 3), (0, 1), (2, 3)),
        ((2, 3), (), ()),
        ((2, 3), (1,), (3,)),
        ((4, 2, 3), (0, 2), (4, 1)),
        ((4, 3), (0, 1), (1, 1)),
        ((0, 3), (1,), (3,)),
    ):
        yield one("broadcast_in_dim", *source, shape=shape, broadcast_dimensions=dims)
    for source, new in (((2, 6), (3, 4)), ((1,), ()), ((), (1, 1)), ((0, 3), (0,))):
        yield one("reshape", *source, new_sizes=new)
    yield one("squeeze", 1, 3, 1, dimensions=(0, 2))
    yield one("squeeze", 2, dimensions=())
    yield one("transpose", 2, 3, 4, permutation=(2, 0, 1))
    yield one("transpose", permutation=())
    yield one("rev", 2, 3, dimensions=(0, 1))
    yield one("rev", 2, 3, dimensions=())
    for n, start, limit, strides in ((5, 1, 4, None), (7, 1, 6, 2), (7, 0, 7, 3), (5, 2, 2, 2)):
        attrs = {"start_indices": (start, 0), "limit_indices": (limit, 2)}
        yield one("slice", n, 2, **attrs, strides=strides and (strides, 1), label=f"{n} {strides}")
    for config in (
        ((1, 2, 0), (0, 0, 0)),
        ((-1, 2, 1), (1, -1, 0)),
        ((0, 0, 2), (-1, -1, 1)),
        ((0, 0, 0), (0, 0, 0)),
    ):
        yield Case("pad", (real(3, 4), np.array(0.5)), {"padding_config": config}, str(config))
    yield Case("pad", (real(0), np.array(0.5)), {"padding_config": ((2, 1, 3),)}, "empty")
    yield Case("concatenate", (real(2, 3), real(1, 3), real(0, 3)), {"dimension": 0})
    yield Case("concatenate", (real(3, 2), real(3, 2, seed=1)), {"dimension": 1}, "alike")
    yield Case("concatenate", (real(2, 3), ints(2, 1).astype(float)), {"dimension": 1})
    yield one("split", 5, 2, sizes=(2, 0, 3), axis=0)
    yield one("split", 2, 4, sizes=(4,), axis=1)
    yield Case("stack", (real(3), real(3)), {"axis": 0})
    yield Case("stack", (real(2, 3), real(2, 3), real(2, 3)), {"axis": 2})
    yield one("unstack", 3, 2, axis=0)
    yield one("unstack", 3, 2, axis=1)
    yield one("tile", 2, 3, reps=(2, 1))
    yield one("tile", 2, 1, reps=(3, 4))
    yield one("tile", 2, 3, reps=(1, 1))
    yield Case("iota", (), {"dtype": np.dtype(np.int32), "shape": (2, 3), "dimension": 1})
    devices = {"devices": (None,), "srcs": (None,)}
    copy = {"copy_semantics": jax.make_jaxpr(jax.device_put)(1.0).eqns[0].params["copy_semantics"]}
    yield Case("device_put", (real(2, 3),), {**devices, **copy})
    yield one("name", 2, 3, name="hidden")
    yield Case("optimization_barrier", (real(2), ints(3)))
    yield Case("constant", (), {"value": real(2)})
    mesh = Mesh(np.array(jax.devices()[:1]), ("x",))
    sharding = NamedSharding(mesh, PartitionSpec())
    yield Case("sharding_constraint", (real(2, 3),), _sharding_params(sharding))
    yield Case("layout_constraint", (real(2, 3),), {"layout": Layout((1, 0))})
    yield one("stage", 2, 3)


def _sharding_params(sharding) -> dict:
    def constrain(x):
        return jax.lax.with_sharding_constraint(x, sharding)

    return dict(jax.make_jaxpr(constrain)(np.zeros((2, 3))).eqns[0].params)


AXES = (
    ((2, 3, 4), (0, 2)),
    ((2, 3), (0, 1)),
    ((3,), (0,)),
    ((2, 3), ()),
    ((1, 3), (0,)),
    ((2, 0), (0,)),
)


def reductions() -> Iterator[Case]:
    for shape, axes in (*AXES, ((0, 2), (0,))):
        yield one("reduce_sum", *shape, axes=axes)
        yield Case("reduce_prod", (positive(*shape),), {"axes": axes})
    yield Case("reduce_sum", (complexes(3),), {"axes": (0,)})
    yield Case("reduce_prod", (complexes(3),), {"axes": (0,)})
    zeros = np.array([[0.0, 2.0, 3.0], [0.0, 0.0, 3.0], [1.0, 2.0, 3.0]])
    for axes in ((0,), (1,), (0, 1)):
        yield Case("reduce_prod", (zeros,), {"axes": axes}, f"zeros {axes}")
    for op in ("reduce_max", "reduce_min"):
        for shape, axes in AXES if op == "reduce_max" else AXES[:1]:
            yield Case(op, (distinct(*shape),), {"axes": axes})
        yield Case(op, (tied(4, 5),), {"axes": (1,)}, "ties", kinks=True)
        yield Case(op, (ints(4, 5),), {"axes": (1,)})
    for op in ("reduce_and", "reduce_or", "reduce_xor"):
        yield Case(op, (bools(3, 4),), {"axes": (1,)})
        yield Case(op, (ints(3, 4),), {"axes": (0, 1)})
    for op in ("argmax", "argmin"):
        for axis in (0, 1):
            attrs = {"axes": (axis,), "index_dtype": np.dtype(np.int32)}
            yield Case(op, (distinct(3, 4),), attrs, f"axis {axis}")


def cumulative() -> Iterator[Case]:
    for op in ("cumsum", "cumprod", "cummax", "cummin", "cumlogsumexp"):
        for n in (0, 1, 2, 3, 4, 6) if op == "cumprod" else (5,):
            attrs = {"axis": 0, "reverse": bool(n % 2)}
            yield Case(op, (distinct(n, 2) / 3,), attrs, f"{n} rows")
        yield Case(op, (distinct(2, 5) / 3,), {"axis": 1, "reverse": False}, "columns")
    zeros = np.array([2.0, 0.0, 3.0, 0.0, 1.5])
    yield Case("cumprod", (zeros,), {"axis": 0, "reverse": False}, "zeros")
    yield Case("cumlogsumexp", (tied(6),), {"axis": 0, "reverse": False}, "ties")
    for op in ("cummax", "cummin"):
        for reverse in (False, True):
            attrs = {"axis": 0, "reverse": reverse}
            yield Case(op, (tied(6),), attrs, f"ties {reverse}", kinks=True)


CASES = (*structural(), *reductions(), *cumulative())
