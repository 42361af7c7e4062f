"""Running jaxprs and graphs without XLA: NumPy where it has the function, JAX's primitive elsewhere.

A fuzzer that compiled each program would spend all its time there. Loops and branches are Python's
here, so that no program is compiled as a whole, and what NumPy lacks is a single primitive whose
executable JAX keeps.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from backpass.ir import jax_compat
from backpass.ir.evaluate import evaluate
from backpass.ir.graph import Graph, Literal
from fuzz.primitives import NUMPY

Arrays = Sequence[Any]
Body = Callable[..., list[Any]]
CALLS = "jit closed_call eval_jaxpr remat2 custom_jvp_call custom_vjp_call".split()


def run_jaxpr(jaxpr: Any, *args: Any) -> list[Any]:
    """Evaluate a closed jaxpr, or an open one without constants."""
    constvars, consts, invars, eqns, outvars = jax_compat.jaxpr_parts(jaxpr)
    env: dict[Any, Any] = dict(
        zip([*constvars, *invars], map(_array, [*consts, *args]), strict=True)
    )

    def read(var: Any) -> Any:
        return np.asarray(var.val, var.aval.dtype) if hasattr(var, "val") else env[var]

    with np.errstate(all="ignore"):
        for eqn in eqns:
            given = list(map(read, eqn.invars))
            env.update(zip(eqn.outvars, _equation(eqn, given), strict=True))
    return list(map(read, outvars))


def run_graph(graph: Graph, *args: Any) -> list[Any]:
    """Evaluate a graph of ours."""
    env: dict[Any, Any] = dict(zip(graph.inputs, map(_array, args), strict=True))

    def read(value: Any) -> Any:
        return value.data if isinstance(value, Literal) else env[value]

    with np.errstate(all="ignore"):
        for node in graph.nodes:
            given = list(map(read, node.inputs))
            env.update(zip(node.outputs, _node(node, given), strict=True))
    return list(map(read, graph.outputs))


def _equation(eqn: Any, args: Arrays) -> list[Any]:
    name, params = eqn.primitive.name, eqn.params
    found = plain(name, params, args)
    if found is not None:
        return found
    if name == "scan" and params["length"]:
        consts, carry = jax_compat.scan_layout(params)
        return scan(_body(params["jaxpr"]), consts, carry, params, args)
    if name == "while":
        test, body = _body(params["cond_jaxpr"]), _body(params["body_jaxpr"])
        return loop(test, body, params, args)
    if name == "cond":
        return branch([_body(each) for each in params["branches"]], args)
    if name == "custom_linear_solve":
        of_a, of_at, of_solve, of_transposed = params["const_lengths"]
        held, y = args[of_a + of_at :], args[of_a + of_at + of_solve + of_transposed :]
        return run_jaxpr(params["jaxprs"].solve, *held[:of_solve], *y)
    if name in CALLS:
        return run_jaxpr(params.get("call_jaxpr") or params["jaxpr"], *args)
    if name == "call_hi_primitive":
        return run_jaxpr(jax_compat.expanded(eqn), *args)
    out = eqn.primitive.bind(*args, **eqn.primitive.get_bind_params(params))
    return list(out) if eqn.primitive.multiple_results else [out]


def _node(node: Any, args: Arrays) -> list[Any]:
    name, attrs = node.op.name, node.attrs
    found = plain(name, attrs, args)
    if found is not None:
        return found
    bodies = [_region(region) for region in node.regions]
    if name == "scan" and attrs["length"]:
        return scan(bodies[0], attrs["num_consts"], attrs["num_carry"], attrs, args)
    if name == "while":
        return loop(*bodies, attrs, args)
    if name == "cond":
        return branch(bodies, args)
    if name == "custom_linear_solve":
        of_a, of_at, of_solve, of_transposed = attrs["const_lengths"]
        held, y = args[of_a + of_at :], args[of_a + of_at + of_solve + of_transposed :]
        return bodies[len(bodies) // 2](*held[:of_solve], *y)
    if name in CALLS:
        return bodies[0](*args)
    return node.op.lower(args, attrs, node.regions, evaluate)


def _body(jaxpr: Any) -> Body:
    return lambda *xs: run_jaxpr(jaxpr, *xs)


def _region(region: Graph) -> Body:
    return lambda *xs: run_graph(region, *xs)


def plain(name: str, attrs: Any, args: Arrays) -> list[Any] | None:
    """By NumPy, or None where it has no such function of such arrays."""
    function = NUMPY.get(name)
    if function is None:
        return None
    arrays = [x if isinstance(x, np.ndarray | np.generic) else _numpy(x) for x in args]
    if any(x is None for x in arrays):
        return None
    out = function(attrs, *arrays)
    if out is None:
        return None
    return out if isinstance(out, list) else [np.asarray(out)]


def _array(x: Any) -> Any:
    return x if hasattr(x, "dtype") else np.asarray(x)


def _numpy(x: Any) -> np.ndarray | None:
    """A JAX array as NumPy's; keys have no such form."""
    known = not jax.dtypes.issubdtype(x.dtype, jax.dtypes.extended)
    return np.asarray(x) if known else None


def scan(body: Body, consts: int, carry: int, attrs: Any, args: Arrays) -> list[Any]:
    """`length` steps, at least one; forwards or in reverse, the slices stacked."""
    fixed, state, xs = args[:consts], list(args[consts : consts + carry]), args[consts + carry :]
    length = attrs["length"]
    order = range(length)[::-1] if attrs["reverse"] else range(length)
    rows: dict[int, list[Any]] = {}
    for i in order:
        outs = body(*fixed, *state, *(x[i] for x in xs))
        state, rows[i] = outs[:carry], outs[carry:]
    return [*state, *(_stack([rows[i][j] for i in range(length)]) for j in range(len(rows[0])))]


def _stack(rows: Sequence[Any]) -> Any:
    arrays = [_numpy(x) for x in rows]
    return jax.numpy.stack(rows) if any(x is None for x in arrays) else np.stack(arrays)


def loop(test: Body, body: Body, attrs: Any, args: Arrays) -> list[Any]:
    """A while loop; under `jax.vmap` those that have stopped keep their carry."""
    a, b = attrs["cond_nconsts"], attrs["body_nconsts"]
    state = list(args[a + b :])
    while np.any(going := np.asarray(test(*args[:a], *state)[0])):
        new = body(*args[a : a + b], *state)
        if going.ndim:
            new = [np.where(_spread(going, x), x, y) for x, y in zip(new, state, strict=True)]
        state = list(new)
    return state


def _spread(going: np.ndarray, x: Any) -> np.ndarray:
    return going.reshape(going.shape + (1,) * (np.ndim(x) - going.ndim))


def branch(bodies: Sequence[Body], args: Arrays) -> list[Any]:
    """The branch that the index names, clamped as JAX does."""
    index, *operands = args
    return bodies[min(max(int(index), 0), len(bodies) - 1)](*operands)
