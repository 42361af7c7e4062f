"""Attribute values as text: one table of kinds, read by the printer and by the parser.

    value  ::= 'None' | 'True' | 'False' | number | string          Python's own
             | number ':' dtype                                      a NumPy scalar
             | '(' value,* ')' | '[' value,* ']' | '{' (value ':' value),* '}'
             | 'frozenset{' value,* '}' | 'slice(' value ',' value ',' value ')'
             | dtype                                                 f32, bool, key<fry>
             | class '.' member                                      Precision.HIGHEST
             | class '(' (field '=' value),* ')'                     GatherDimensionNumbers(...)
             | 'P(' value,* ')'                                      of the names of mesh axes
             | 'policy.' name                                        of jax.checkpoint_policies
             | dense | '@' name | 'keys<' string value '>'           arrays, PRNG keys
             | 'prng<' tag '>' | graph
             | 'opaque<' string '>'                                  printed, read on request

What is not in the table is opaque: a person can read what it is, the parser refuses it unless it
is asked for graphs to look at, in which an `Opaque` stands for it.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

import jax
import jax.extend.random
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from .graph import Graph, Node, Value, same_attr
from .lexer import NAME, quote, word
from .numbers import format_number
from .resources import READ_LIMIT, Writer, is_plain
from .types import ArrayType, dtype_from_name, dtype_name

PrintGraph = Callable[[Graph], str]

_ENUMS = (
    "AccuracyMode DotAlgorithmPreset FftType GatherScatterMode Precision RandomAlgorithm"
    " RoundingMethod linalg.EigImplementation linalg.EighImplementation linalg.SvdAlgorithm"
)
_RECORDS = (
    "ConvDimensionNumbers DotAlgorithm GatherDimensionNumbers RaggedDotDimensionNumbers"
    " ScatterDimensionNumbers Tolerance"
)


def _lax(names: str) -> dict[str, Any]:
    """Classes of `jax.lax` by their own names, those that this version of JAX has."""
    found = {}
    for path in names.split():
        module, _, name = path.rpartition(".")
        found[name] = getattr(getattr(lax, module) if module else lax, name, None)
    return {name: cls for name, cls in found.items() if cls is not None}


ENUMS: Mapping[str, Any] = _lax(_ENUMS)
RECORDS: Mapping[str, Any] = _lax(_RECORDS)
POLICIES: Mapping[str, Any] = {
    name: policy
    for name in "everything_saveable nothing_saveable dots_saveable checkpoint_dots"
    " dots_with_no_batch_dims_saveable checkpoint_dots_with_no_batch_dims".split()
    if (policy := getattr(jax.checkpoint_policies, name, None)) is not None
}
PRNGS: Mapping[str, Any] = {
    "fry": jax.extend.random.threefry_prng_impl,
    "rbg": jax.extend.random.rbg_prng_impl,
    "urbg": jax.extend.random.unsafe_rbg_prng_impl,
}

# Attributes that the text leaves out where they have this value, which is that of almost every
# program or follows from the type of the first output. `-key` in the text tells that a node has
# no such attribute at all.
_SCATTER = {"indices_are_sorted": False, "unique_indices": False}
_PLAIN: Mapping[str, Mapping[str, Any]] = {
    "broadcast_in_dim": {"shape": lambda out: out.shape},
    "conv_general_dilated": {
        "batch_group_count": 1,
        "feature_group_count": 1,
        "precision": None,
        "preferred_element_type": lambda out: out.dtype,
    },
    "convert_element_type": {"new_dtype": lambda out: out.dtype, "weak_type": False},
    "dot_general": {"precision": None, "preferred_element_type": lambda out: out.dtype},
    "gather": {"fill_value": None, **_SCATTER},
    "iota": {"dtype": lambda out: out.dtype, "shape": lambda out: out.shape},
    "reshape": {"new_sizes": lambda out: out.shape},
    "shard_map": {"check_vma": True},
    "scan": {"reverse": False, "unroll": 1},
    "slice": {"strides": None},
    **dict.fromkeys(("scatter", "scatter-add", "scatter-mul", "scatter-sub"), _SCATTER),
    **dict.fromkeys(("scatter-min", "scatter-max"), _SCATTER),
}


def plain_attrs(op: str, outputs: Sequence[Value]) -> dict[str, Any]:
    """Return the attributes of an `op` that the text leaves out, with their values."""
    rules = _PLAIN.get(op)
    if rules is None or not outputs:
        return {}
    return {k: v(outputs[0].type) if callable(v) else v for k, v in rules.items()}


_ADDRESS = re.compile(r" at 0x[0-9a-f]+")
_OPAQUE_WIDTH = 60


@dataclasses.dataclass(frozen=True, slots=True)
class AttrPrinter:
    """Prints attribute values; `constants` collects large arrays, `graph` prints a graph."""

    constants: Writer
    graph: PrintGraph

    def attrs(self, node: Node) -> list[str]:
        """Print the attributes of `node` as `key=value`, in the order of their names."""
        attrs, plain = node.attrs, plain_attrs(node.op.name, node.outputs)
        items: list[str] = []
        for key in sorted({*attrs, *plain}) if attrs or plain else items:
            if key not in attrs:
                items.append(f"-{word(key, NAME)}")
            elif key not in plain or not same_attr(attrs[key], plain[key]):
                items.append(f"{word(key, NAME)}={self.value(attrs[key])}")
        return items

    def value(self, x: Any) -> str:
        """Text of one value."""
        rule = _BY_TYPE.get(type(x)) or _rule_for(x)
        return rule(self, x)

    def many(self, xs: Any) -> str:
        """Texts of several values, with commas between."""
        return ",".join(map(self.value, xs))


@dataclasses.dataclass(frozen=True, slots=True)
class Opaque:
    """What stands for a Python object that the text names: `parse(text, opaque=True)` makes it."""

    text: str


def opaque(x: Any, why: str = "") -> str:
    """Name an object that has no text form; addresses are left out, so that it is stable."""
    try:
        shown = " ".join(_ADDRESS.sub("", repr(x)).split())
    except Exception:  # a stranger's __repr__ must not stop the printer
        shown = ""
    if len(shown) > _OPAQUE_WIDTH:
        shown = shown[: _OPAQUE_WIDTH - 3] + "..."
    kind = f"{type(x).__module__}.{type(x).__qualname__}"
    return f"opaque<{quote(' '.join(filter(None, (kind, shown, why))))}>"


def _float(x: float) -> str:
    return format_number(np.float64(x))


def _tuple(p: AttrPrinter, x: tuple[Any, ...]) -> str:
    return f"({p.value(x[0])},)" if len(x) == 1 else f"({p.many(x)})"


def _dict(p: AttrPrinter, x: dict[Any, Any]) -> str:
    return "{" + ", ".join(f"{p.value(k)}: {p.value(v)}" for k, v in x.items()) + "}"


def _scalar(p: AttrPrinter, x: np.generic) -> str:
    if not is_plain(x.dtype):
        return opaque(x)
    return f"{format_number(x)}:{dtype_name(x.dtype)}"


def _array(p: AttrPrinter, x: Any) -> str:
    try:
        if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            data = p.value(np.asarray(jax.random.key_data(x)))
            return f"keys<{quote(str(jax.random.key_impl(x)))} {data}>"
        if not is_plain(x.dtype):
            return opaque(x)
        found = p.constants.write(np.asarray(x)) if x.nbytes <= READ_LIMIT else None
    except (RuntimeError, TypeError, ValueError) as error:  # deleted, spread over hosts, traced
        return opaque(x, type(error).__name__)
    kind = ArrayType(x.shape, x.dtype)
    return found or f"opaque<{quote(f'{kind}, {x.nbytes} bytes: over the limit of the resources')}>"


def _slice(p: AttrPrinter, x: slice) -> str:
    return f"slice({p.many((x.start, x.stop, x.step))})"


def _record(p: AttrPrinter, x: Any) -> str:
    """Print a record as a call of its class, without the fields that have their default value."""
    fields = inspect.signature(type(x)).parameters.values()
    values = [(field, getattr(x, field.name)) for field in fields]
    shown = [f"{f.name}={p.value(v)}" for f, v in values if not same_attr(v, f.default)]
    return f"{type(x).__name__}({', '.join(shown)})"


def _spec(p: AttrPrinter, x: Any) -> str:
    return opaque(x) if x.reduced or x.unreduced else f"P({p.many(tuple(x))})"


def _mesh(p: AttrPrinter, x: Any) -> str:
    return f"opaque<{quote(_mesh_text(x))}>"


def _mesh_text(mesh: Any) -> str:
    """`Mesh d=2 m=4`: the devices themselves have no text."""
    return " ".join((type(mesh).__name__, *(f"{name}={n}" for name, n in mesh.shape.items())))


def _named_sharding(p: AttrPrinter, x: Any) -> str:
    return f"opaque<{quote(f'{x.spec} on {_mesh_text(x.mesh)}')}>"


_BY_TYPE: Mapping[type, Callable[[AttrPrinter, Any], str]] = {
    type(None): lambda p, x: "None",
    bool: lambda p, x: str(x),
    int: lambda p, x: str(x) if x.bit_length() < 10_000 else opaque(0, "a huge integer"),
    float: lambda p, x: _float(x),
    complex: lambda p, x: format_number(np.complex128(x)),
    str: lambda p, x: quote(x),
    tuple: _tuple,
    list: lambda p, x: f"[{p.many(x)}]",
    dict: _dict,
    frozenset: lambda p, x: f"frozenset{{{','.join(sorted(map(p.value, x)))}}}",
    slice: _slice,
    Graph: lambda p, x: p.graph(x),
    Opaque: lambda p, x: f"opaque<{quote(x.text)}>",
    PartitionSpec: _spec,
    NamedSharding: _named_sharding,
    Mesh: _mesh,
    AbstractMesh: _mesh,
    np.ndarray: _array,
    **{cls: _record for cls in RECORDS.values()},
    **{cls: lambda p, x: f"{type(x).__name__}.{x.name}" for cls in ENUMS.values()},
}


def _rule_for(x: Any) -> Callable[[AttrPrinter, Any], str]:
    """Rule for values that are found by more than their exact type."""
    if isinstance(x, np.generic):
        return _scalar
    if hasattr(x, "__array__") and hasattr(x, "dtype"):  # JAX has arrays of several classes
        return _array
    if isinstance(x, (np.dtype, _key_dtype())):
        return lambda p, x: dtype_name(x) if _has_name(x) else opaque(x)
    for tag, implementation in PRNGS.items():
        if x is implementation:
            return lambda p, x: f"prng<{tag}>"
    for name, policy in POLICIES.items():
        if x is policy:
            return lambda p, x: f"policy.{name}"
    return lambda p, x: opaque(x)


@cache
def _key_dtype() -> type:
    return type(dtype_from_name("key<fry>"))


def _has_name(dtype: Any) -> bool:
    try:
        return bool(dtype_from_name(dtype_name(dtype)) == dtype)
    except KeyError:
        return False
