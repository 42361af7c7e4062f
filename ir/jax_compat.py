"""The one place that knows JAX's versions (0.10 to 0.12) and its private corners.

Everything else speaks to `jax`, `jax.lax`, `jax.numpy`, `jax.extend` alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

import jax
import jax.extend.core as jec
import numpy as np
from jax._src import compilation_cache as _compilation_cache  # where JAX keeps executables
from jax._src import core as _core  # the trace that is under way: no public name
from jax._src import pjit as _pjit  # reshard, psum_invariant and their like: no public name
from jax._src.compilation_cache_interface import CacheInterface
from jax._src.lax import parallel as _parallel
from jax._src.lax.control_flow import conditionals as _conditionals  # platform_index
from jax._src.state.discharge import discharge_state as _discharge_state  # as jit's lowering does
from jax.extend import source_info_util
from jax.sharding import AxisType

from .source import JAX_FOLDER

try:
    from jax._src.config import trace_context as _trace_context
except ImportError:  # no such name: programs are then keyed by their arguments alone

    def _trace_context() -> Any:
        return None


try:
    from jax._src.config import trace_context_names as _trace_context_names
except ImportError:  # the settings of a context have no names

    def _trace_context_names() -> Any:
        return ()


JAX_VERSION: tuple[int, ...] = tuple(int(part) for part in jax.__version__.split(".")[:3])

_CAPTURED = 2 * 10**9  # JAX's default of `jax_captured_constants_warn_bytes`

# Parameters that JAX's primitives need and that are plain in almost every program: the importer
# leaves them out of a node's attrs when they have the value given here, binding puts them back.
_ACCURACY = ("cbrt cos exp exp2 expm1 log log1p log2 logistic rsqrt sin sqrt tan tanh").split()
_SHARDING = ("broadcast_in_dim convert_element_type iota reshape").split()
_OUT_SHARDING = (
    "dot_general conv_general_dilated reduce_sum ragged_dot_general rng_bit_generator"
).split()
_NEW_OUT_SHARDING = ("reduce_max reduce_min").split()

IMPLIED: dict[str, dict[str, Any]] = {
    **{name: {"accuracy": None} for name in _ACCURACY},
    **{name: {"sharding": None} for name in _SHARDING},
    **{name: {"out_sharding": None} for name in _OUT_SHARDING},
    "mul": {"out_dtype": None},
}
IMPLIED["reshape"]["dimensions"] = None
if JAX_VERSION >= (0, 11):
    IMPLIED |= {name: {"out_sharding": None} for name in _NEW_OUT_SHARDING}
    IMPLIED["top_k"] = {"is_stable": True}
if JAX_VERSION >= (0, 12):
    IMPLIED["erfc"] = {"accuracy": None}


@cache
def primitive(name: str) -> Any:
    """Return JAX's primitive called `name`. Raises `KeyError` when no public name leads to it."""
    for module in (jec.primitives, jax.lax, _parallel, _pjit, _conditionals):
        for attribute in dir(module):
            found = getattr(module, attribute) if attribute.endswith("_p") else None
            if isinstance(found, jec.Primitive) and found.name == name:
                return found
    raise KeyError(f"JAX {jax.__version__} has no primitive named {name!r}")


@cache
def is_named(prim: Any) -> bool:
    """False for a primitive of a user's that has the name of one of JAX's."""
    try:
        return primitive(prim.name) is prim
    except KeyError:
        return True


def bind(name: str, args: Sequence[Any], attrs: Mapping[str, Any]) -> list[Any]:
    """Bind the primitive `name` to arrays or tracers, the implied parameters put back."""
    prim = primitive(name)
    implied = IMPLIED.get(name)
    out = prim.bind(*args, **(implied | dict(attrs) if implied else attrs))
    return list(out) if prim.multiple_results else [out]


def current_trace() -> Any:
    """Return the trace that a primitive bound now would go to: JAX's evaluation, or a tracer's."""
    return _core.trace_ctx.trace


def is_part() -> bool:
    """Return whether JAX is tracing a program, of which what is called now becomes a part."""
    return _core.trace_ctx.trace is not _core.eval_trace


# Manual mesh axes, inside `jax.shard_map`


def manual_axes() -> frozenset[Any]:
    """Return the mesh axes that are manual where we are called."""
    return frozenset(jax.sharding.get_abstract_mesh().manual_axes)


def varying_axes(x: Any) -> frozenset[Any]:
    """Return the manual axes that an array or an aval varies over; none without checked types."""
    aval = x if isinstance(x, jax.core.ShapedArray) else jax.typeof(x)
    kind = getattr(aval, "manual_axis_type", None)
    return frozenset(kind.varying if kind is not None else getattr(aval, "vma", ()))


def pvary(x: Any, axes: Sequence[Any]) -> Any:
    """Let `x` vary over those of `axes` that are manual; where types are not checked, x itself."""
    manual = manual_axes()
    missing = tuple(a for a in axes if a in manual and a not in varying_axes(x))
    return jax.lax.pcast(x, missing, to="varying") if missing else x


# Explicit mesh axes, which JAX's types tell of


def is_explicit(mesh: Any) -> bool:
    """True for a mesh some of whose axes JAX's types tell of."""
    return AxisType.Explicit in mesh.axis_types


def explicit_mesh(args: Sequence[Any]) -> Any:
    """Return the mesh with explicit axes that we are called on, or that arguments lie on; or None.

    Arguments of `jax.jit` tell of their mesh, also where no context does.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        shardings = (jax.typeof(x).sharding for x in args if isinstance(x, jax.Array))
        mesh = next((s.mesh for s in shardings if not s.mesh.empty), mesh)
    return mesh if is_explicit(mesh) else None


def on_auto_axes(
    function: Any, mesh: Any, specs: Sequence[jax.sharding.PartitionSpec], args: Sequence[Any]
) -> list[Any]:
    """Call with the axes of a mesh left to XLA; results lie by `specs` again."""
    with jax.sharding.use_abstract_mesh(mesh):
        outs = jax.sharding.auto_axes(function, out_sharding=list(specs))(*args)
    return list(outs)


def struct(aval: Any, weak: bool = False) -> jax.ShapeDtypeStruct:
    """Return what a function is traced with in the place of an array of `aval`.

    It has the sharding and the manual axes of the aval, where these are a part of its type.
    """
    placed: dict[str, Any] = {}
    sharding = getattr(aval, "sharding", None)
    if sharding is not None and not sharding.mesh.empty:
        placed["sharding"] = sharding
    if varying_axes(aval):
        name = "manual_axis_type" if hasattr(aval, "manual_axis_type") else "vma"
        placed[name] = getattr(aval, name)
    return jax.ShapeDtypeStruct(aval.shape, aval.dtype, weak_type=weak, **placed)


def on_no_mesh() -> bool:
    """True outside of `jax.set_mesh` and `jax.shard_map`: no type tells of a mesh."""
    return bool(jax.sharding.get_abstract_mesh().empty)


def struct_of(x: Any) -> jax.ShapeDtypeStruct:
    """Return what a function is traced with in the place of the array `x`."""
    if isinstance(x, jax.ShapeDtypeStruct):
        return x
    aval = jax.typeof(x)
    return struct(aval, aval.weak_type)


def out_avals(function: Any, avals: Sequence[Any]) -> list[Any]:
    """Return the avals of what `function` gives for arrays of `avals`, with all that JAX types."""
    structs = [struct(aval, aval.weak_type) for aval in avals]
    _, _, _, _, outvars = jaxpr_parts(jax.make_jaxpr(function)(*structs))
    return [var.aval for var in outvars]


@cache
def mentions(mesh: Any) -> Any:
    """Return a jaxpr that does nothing on `mesh`.

    As a parameter of an equation it tells `jax.jit` which devices the equation is for.
    """
    spec = jax.sharding.PartitionSpec()
    nothing = jax.shard_map(lambda x: x, mesh=mesh, in_specs=spec, out_specs=spec)
    return jax.make_jaxpr(nothing)(jax.ShapeDtypeStruct((), np.float32))


def inside_shard_map(params: Mapping[str, Any], thunk: Any) -> Any:
    """Call `thunk` with the mesh and axis names that the body of a `shard_map` equation sees."""
    found: list[Any] = []

    def body() -> tuple[()]:
        found.append(thunk())
        return ()

    mapped = jax.shard_map(
        body,
        mesh=params["mesh"],
        in_specs=(),
        out_specs=(),
        axis_names=set(newly_manual(params)),
        check_vma=params["check_vma"],
    )
    jax.eval_shape(mapped)
    return found[0]


def newly_manual(params: Mapping[str, Any]) -> frozenset[Any]:
    """Return the axes that a `shard_map` equation makes manual."""
    name = "newly_manual_axes" if "newly_manual_axes" in params else "manual_axes"
    return frozenset(params[name])


def trace_context() -> Any:
    """Hashable value of the settings that change what tracing gives (x64, matmul precision, ...).

    `jax.jit` keys its own cache with it; there is no public name.
    """
    return _trace_context()


def context_changes(old: Any, new: Any) -> list[tuple[str, Any, Any]]:
    """`(name of the setting, before, after)` where two of `trace_context`'s values differ."""
    if old == new:
        return []
    try:
        names = _trace_context_names()
    except NotImplementedError:  # by jaxlibs that do not tell
        names = ()
    if not isinstance(old, tuple) or not len(names) == len(old) == len(new):
        return [("a setting of JAX's", old, new)]
    return [each for each in zip(names, old, new, strict=True) if each[1] != each[2]]


class ExecutableCache(CacheInterface):
    """A cache of executables as JAX asks for one: two functions, of a key.

    JAX's own writes its files in place, looks at no checksum, does not see that a file belongs to
    another program, and lets a damaged one stay.
    """

    def __init__(self, directory: Any, get: Any, put: Any) -> None:
        """`get(key)` gives bytes or None, `put(key, bytes)` keeps them."""
        self._path, self._get, self._put = directory, get, put

    def get(self, key: str) -> Any:
        """Return the bytes of an executable, or None."""
        return self._get(key)

    def put(self, key: str, value: bytes) -> None:
        """Keep the bytes of an executable."""
        self._put(key, value)


def keep_executables(cache: ExecutableCache) -> None:
    """Let `cache` take the place of JAX's own, until JAX's is reset: no public name sets one."""
    _compilation_cache.reset_cache()
    with _compilation_cache._cache_initialized_mutex:
        _compilation_cache._cache = cache
        _compilation_cache._cache_initialized = True


def captured_bytes() -> int | None:
    """Bytes of captured constants of which the user has asked JAX to warn; below 0: of none.

    None while that is JAX's default.
    """
    found = int(getattr(jax.config, "jax_captured_constants_warn_bytes", _CAPTURED))
    return None if found == _CAPTURED else found


def jaxpr_parts(jaxpr: Any) -> tuple[Sequence[Any], Sequence[Any], Sequence[Any], Any, Any]:
    """`(constvars, consts, invars, eqns, outvars)` of an open or closed jaxpr."""
    inner = getattr(jaxpr, "jaxpr", jaxpr)
    consts = getattr(jaxpr, "consts", ())
    return inner.constvars, consts, inner.invars, inner.eqns, inner.outvars


def without_refs(jaxpr: Any) -> Any:
    """Have values in the place of the mutable arrays (`jax.new_ref`) that a jaxpr makes itself.

    Those that come from outside stay. Lowering by `jax.jit` does the same.
    """
    _, _, invars, eqns, _ = jaxpr_parts(jaxpr)
    if not any(eqn.primitive.name in ("new_ref", "empty_ref") for eqn in eqns):
        return jaxpr
    closed = jaxpr if hasattr(jaxpr, "consts") else jec.ClosedJaxpr(jaxpr, ())
    own = [not isinstance(v.aval, jax.ref.AbstractRef) for v in invars]
    return _discharge_state(closed, should_discharge=own)


def jaxpr_name(jaxpr: Any) -> str:
    """Name of the function that a jaxpr was traced from."""
    info = getattr(getattr(jaxpr, "jaxpr", jaxpr), "debug_info", None)
    return getattr(info, "func_name", None) or "body"


# Files in which JAX wraps functions of the user's, as `jax.custom_gradient` and `lax.map` do.
_MAKERS = ("custom_derivatives.py", "solves.py", "control_flow/loops.py")


def is_library(jaxpr: Any) -> bool:
    """True when a jaxpr was traced from a function of JAX's own."""
    info = getattr(getattr(jaxpr, "jaxpr", jaxpr), "debug_info", None)
    file = str(getattr(info, "func_filename", None) or "")
    return file.startswith(JAX_FOLDER) and not file.endswith(_MAKERS)


def forward_rule(thunk: Any, count: int) -> Any:
    """Trace the forward part of a `custom_vjp` of `count` arguments: `(jaxpr, consts)`.

    A call inside another rule has what it closes over as leading arguments, we cannot see how
    many. JAX raises until those are said to have no tangents.
    """
    for held in range(count):
        try:
            return thunk.call_wrapped(*[i >= held for i in range(count)])
        except Exception as error:
            if type(error).__name__ != "CustomVJPException":  # has no public name
                raise
    return thunk.call_wrapped(*[False] * count)


def backward_rule(bwd: Any, args: Sequence[Any]) -> Sequence[Any]:
    """Cotangents by the backward part of a `custom_vjp`; from 0.11 on, logs lie beside them."""
    found = bwd.call_wrapped(*args)
    return found[0] if JAX_VERSION >= (0, 11) else found  # type: ignore[no-any-return]


def backward_result(cts: Sequence[Any]) -> Any:
    """Return cotangents as the backward part of a `custom_vjp` gives them; see `backward_rule`."""
    return (cts, {}) if JAX_VERSION >= (0, 11) else cts


def custom_name(params: Mapping[str, Any]) -> str:
    """Name of the function that a custom rule belongs to."""
    return jaxpr_name(params["call_jaxpr"])


def scan_layout(params: Mapping[str, Any]) -> tuple[int, int]:
    """`(number of constants, number of carries)` of a scan equation."""
    if "ft_in" in params:
        consts, carry, _ = params["ft_in"].unpack()
        return len(consts), len(carry)
    return params["num_consts"], params["num_carry"]


def expands(eqn: Any) -> bool:
    """False for a `call_hi_primitive` whose derivative is not that of its expansion."""
    return type(eqn.params["_prim"]).__name__ not in ("CustomRoot", "_RootLinearMap")


def expanded(eqn: Any) -> Any:
    """Return the jaxpr of a `call_hi_primitive` (from 0.11 on), by its own expansion."""
    prim = eqn.params["_prim"]
    structs = [jax.ShapeDtypeStruct(v.aval.shape, v.aval.dtype) for v in eqn.invars]

    def flat(*xs: Any) -> list[Any]:
        return jax.tree.leaves(prim.expand(*jax.tree.unflatten(prim.in_tree, xs)))

    return jax.make_jaxpr(flat)(*structs)


def policy_saves(policy: Any, node: Any) -> bool:
    """Ask a `jax.checkpoint_policies` predicate whether the outputs of `node` are kept."""
    try:
        prim = primitive(node.op.name)
    except KeyError:
        return False
    avals = [jax.core.ShapedArray(v.type.shape, v.type.dtype) for v in node.inputs]
    answer = policy(prim, *avals, **node.attrs)
    return (
        bool(answer)
        if isinstance(answer, bool)
        else answer is not None and "save" in str(answer).lower()
    )


@contextmanager
def source_context(traceback: Any, scope: str) -> Iterator[None]:
    """Bind under the user's traceback and name stack, so that both reach the HLO."""
    stack = source_info_util.current_name_stack()
    for part in scope.split("/") if scope else ():
        stack = stack.extend(part)
    with source_info_util.user_context(traceback, name_stack=stack):
        yield


def as_numpy_scalar(x: Any, dtype: Any) -> Any:
    """A Python or NumPy scalar as a NumPy scalar of `dtype` (bfloat16 and float8 included)."""
    return np.asarray(x).astype(dtype)[()]


def forget_calls(jitted: Any) -> None:
    """Have `jax.jit`'s function look its programs up again; nothing is traced or compiled anew.

    Where a call's trace has raised, JAX takes the slow way for such calls for ever after. The
    public `clear_cache` would drop traces and executables too.
    """
    clear = getattr(jitted, "_clear_cache", None)
    if clear is not None:
        clear()
