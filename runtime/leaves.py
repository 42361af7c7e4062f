"""What a leaf of a training state is on disk: a record in JSON, and for arrays their numbers.

A record is `{"path", "kind", "type", ...}`. Kinds: `array` (JAX's), `numpy`, `number` (a NumPy
scalar), `key` (a typed PRNG key: its implementation and key data), and `python` (`bool`, `int`,
`float`, `complex`, `str`), whose value stands in the record.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any
from zlib import crc32

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np

from ..ir.errors import ArgumentError, DonationError, RestoreError
from ..ir.jax_compat import bind

_PYTHON = (bool, int, float, complex, str)  # a bool is an int, too: it comes first
_KINDS = ("array", "numpy", "number", "key", "python")


@dataclass(frozen=True)
class Record:
    """What is known of one leaf besides its numbers.

    `type` is a dtype, the implementation of a key, or a Python type; `shape` is the leaf's own.
    `weak` is JAX's weak type, which decides later dtypes; `checksum` is that of the numbers, where
    one process holds them all. `value` is a Python scalar as text.
    """

    path: str
    kind: str
    type: str
    shape: tuple[int, ...] = ()
    weak: bool = False
    value: str = ""
    checksum: int | None = None

    def __str__(self) -> str:
        """`float32[2,3]`, `key<fry>[]`, `a Python int`."""
        if self.kind == "python":
            return f"a Python {self.type}"
        return f"{self.type}[{','.join(map(str, self.shape))}]"

    def as_json(self) -> dict[str, Any]:
        """The record without what is as by default."""
        usual = asdict(Record(None, None, None))  # type: ignore[arg-type]
        return {k: v for k, v in asdict(self).items() if v != usual[k]}


def record_of(data: Any) -> Record:
    """Read a record. Raises `KeyError`, `TypeError`, `ValueError` for what is none."""
    record = Record(**{**data, "shape": tuple(map(int, data.get("shape", ())))})
    if record.kind not in _KINDS or not isinstance(record.path, str):
        raise ValueError(f"unknown kind {record.kind!r}")
    return record


def flatten(state: Any) -> tuple[list[tuple[str, Any]], Any]:
    """Leaves with their paths in words, and the tree."""
    leaves, tree = jax.tree_util.tree_flatten_with_path(state)
    return [(jax.tree_util.keystr(path) or "state", leaf) for path, leaf in leaves], tree


def describe(path: str, leaf: Any) -> Record:
    """The record of a leaf, or of a `jax.ShapeDtypeStruct`. Raises `ArgumentError`."""
    if isinstance(leaf, jax.core.Tracer):
        raise ArgumentError(
            f"{path} has no value yet, it is traced: {leaf.aval.str_short()}\n"
            "  save what a compiled step returns, outside of it"
        )
    if isinstance(leaf, jax.Array | jax.ShapeDtypeStruct):
        key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        weak = bool(getattr(leaf, "weak_type", False))
        kind = "key" if key else "array"
        return Record(path, kind, leaf.dtype.name, leaf.shape, weak)
    if isinstance(leaf, np.ndarray | np.generic):
        kind = "numpy" if isinstance(leaf, np.ndarray) else "number"
        if _storable(leaf.dtype):
            return Record(path, kind, leaf.dtype.name, leaf.shape)
    for each in _PYTHON:
        if type(leaf) is each:
            return Record(path, "python", each.__name__, value=_written(leaf))
    found = getattr(leaf, "dtype", None)
    raise ArgumentError(
        f"{path} is {type(leaf).__name__}{'' if found is None else f' of {found}'}: a state is "
        "made of arrays, PRNG keys, numbers and strings\n  leave it out of the state, or make an "
        "array of it"
    )


def fetch(path: str, leaf: Any) -> tuple[Record, Any]:
    """Return a leaf's record and its numbers: a copy that nobody else changes or gives away.

    Arrays that are spread over several processes stay what they are. Raises `ArgumentError`, and
    `DonationError` for an array that is gone.
    """
    record = describe(path, leaf)
    if isinstance(leaf, jax.ShapeDtypeStruct):
        raise ArgumentError(f"{path} is {record} without values\n  save arrays")
    if record.kind == "python":
        return record, None
    if isinstance(leaf, jax.Array):
        if leaf.is_deleted():
            raise DonationError(
                f"{path}, {record}, was donated to a step and is gone\n"
                "  save what the step returned, not what it was given"
            )
        if record.kind == "key":
            record = Record(**{**asdict(record), "value": str(jax.random.key_impl(leaf))})
            leaf = jax.random.key_data(leaf)
        if not leaf.is_fully_addressable:
            return record, leaf
    numbers = _plain(np.array(leaf, copy=True))
    return Record(**{**asdict(record), "checksum": _checksum(numbers)}), numbers


def is_stored(record: Record) -> bool:
    """True for a leaf with numbers in a file: Python scalars and empty arrays have none."""
    return record.kind != "python" and 0 not in record.shape


def empty(record: Record) -> Any:
    """What `fetch` gave for a leaf that is not stored."""
    if record.kind == "python":
        return None
    if record.kind == "key":
        data = jax.eval_shape(lambda: jax.random.key_data(jax.random.key(0, impl=record.value)))
        return np.zeros((*record.shape, *data.shape), data.dtype)
    return np.zeros(record.shape, jnp.dtype(record.type))


def start_fetching(leaves: Sequence[Any]) -> None:
    """Let the copies of all arrays to the host run at the same time.

    Not of those that are there: JAX 0.11 hands out their own buffers, which can't be donated then.
    """
    for leaf in leaves:
        if not isinstance(leaf, jax.Array) or leaf.is_deleted():
            continue
        away = leaf.is_fully_addressable and any(d.platform != "cpu" for d in leaf.devices())
        if away and not jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf.copy_to_host_async()


def restored(record: Record, numbers: Any, like: Any) -> Any:
    """Return the leaf that was saved, an array where `like` is. Raises `RestoreError`."""
    if record.kind == "python":
        return _read(record)
    sharding = sharding_of(like)
    if isinstance(numbers, np.ndarray):
        numbers = _checked(record, numbers)
        if record.kind == "numpy":
            return numbers
        if record.kind == "number":
            return numbers[()]
        wait = record.kind == "key" and not is_spread(sharding)
        numbers = _on_device(record, numbers, None if wait else sharding)
    if record.kind == "key":
        key = jax.random.wrap_key_data(numbers, impl=record.value)
        return key if sharding is None or is_spread(sharding) else jax.device_put(key, sharding)
    if record.weak:
        options = {"new_dtype": numbers.dtype, "weak_type": True}
        (numbers,) = bind("convert_element_type", (numbers,), options)
    return numbers


def sharding_of(like: Any) -> Any:
    """Where `like` wants to be, if anywhere: an array that JAX may not move, or a struct's."""
    if isinstance(like, jax.ShapeDtypeStruct):
        return like.sharding
    return like.sharding if isinstance(like, jax.Array) and like.committed else None


def is_spread(sharding: Any) -> bool:
    """True for one of several processes, each of which holds a part."""
    return sharding is not None and not sharding.is_fully_addressable


def is_read_in_parts(record: Record, like: Any) -> bool:
    """True where each process reads what it holds: of numbers that are not stored as bytes."""
    plain = record.kind == "array" and (record.type in _BUILTIN or record.type == "bfloat16")
    return plain and is_spread(sharding_of(like))


def differs(saved: Record, like: Record) -> bool:
    """True where a leaf that was saved can't take the place of `like`.

    A Python number fits a scalar array of its kind: a state begins with one and goes on as the
    other.
    """
    if "python" in (saved.kind, like.kind):
        return saved.shape != like.shape or _category(saved) != _category(like)
    return (saved.type, saved.shape) != (like.type, like.shape)


def _category(record: Record) -> str:
    """Kind of number."""
    if record.kind == "python":
        return record.type
    if record.kind == "key":
        return "key"
    dtype = jnp.dtype(record.type)
    for name, kind in (("bool", np.bool_), ("int", np.integer), ("float", np.floating)):
        if jnp.issubdtype(dtype, kind):
            return name
    return "complex"


def _storable(dtype: np.dtype[Any]) -> bool:
    """True for numbers of at most 16 bytes, which JAX or the file format knows."""
    return dtype.name in _BUILTIN or hasattr(ml_dtypes, dtype.name)


_BUILTIN = frozenset(
    "bool int8 int16 int32 int64 uint8 uint16 uint32 uint64 float16 float32 float64 complex64 "
    "complex128".split()
)


def _plain(numbers: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The numbers in C order and of a dtype that every array file knows: rare ones as bytes."""
    numbers = np.ascontiguousarray(numbers).reshape(numbers.shape)  # the former adds axes
    numbers = numbers.astype(numbers.dtype.newbyteorder("="), copy=False)
    if numbers.dtype.name in _BUILTIN or numbers.dtype.name == "bfloat16":
        return numbers
    return numbers.view(f"uint{8 * numbers.dtype.itemsize}")


def _checksum(numbers: np.ndarray[Any, Any]) -> int:
    return crc32(numbers.reshape(-1).view(np.uint8).data)


def _checked(record: Record, numbers: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The numbers as they were saved. Raises `RestoreError`."""
    if record.checksum is not None and _checksum(numbers) != record.checksum:
        raise RestoreError(f"{record.path}, {record}, is damaged: its checksum differs")
    if record.kind != "key" and numbers.dtype.name != record.type:
        numbers = numbers.view(jnp.dtype(record.type))
    if record.kind != "key" and numbers.shape != record.shape:
        raise RestoreError(f"{record.path} is damaged: {numbers.shape} in place of {record}")
    return numbers


def _on_device(record: Record, numbers: np.ndarray[Any, Any], sharding: Any) -> Any:
    if jax.dtypes.canonicalize_dtype(numbers.dtype) != numbers.dtype:
        raise RestoreError(
            f"{record.path} was saved as {record}, which JAX does not keep\n"
            "  set jax_enable_x64, as the run that saved it did"
        )
    if sharding is None:
        return jnp.array(numbers)
    if is_spread(sharding):
        return jax.make_array_from_callback(numbers.shape, sharding, numbers.__getitem__)
    return jax.device_put(numbers, sharding)


def _written(value: Any) -> str:
    """A Python scalar as text that gives back every bit."""
    return value if isinstance(value, str) else repr(value)


def _read(record: Record) -> Any:
    if record.type == "bool":
        return record.value == "True"
    kinds = {"int": int, "float": float, "complex": complex, "str": str}
    return kinds[record.type](record.value)
