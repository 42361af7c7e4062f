"""`bp.compile` on an imperative step: its state becomes inputs and outputs of one static graph.

    step(x)  reads and writes tensors, .grad, an optimiser's state, the random stream
->  program(given, kept, numbers, x) -> (result, given', gradients)

`given` is what the step changes, `kept` what it only reads, `numbers` settings such as a learning
rate. The step is run once on abstract arrays to find them (`Capture` takes in what was made before
the trace and is read within), and once more as a function of them.

A program holds as long as the structure of the state does: which of the `.grad`s that it reads are
there, which modules are in training; else another is made. Python's other values are read when
it is traced.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import jax

from ..compiler.arguments import path_text
from ..compiler.state import watched
from .labels import names_of
from .storage import Storage
from .tensor import Tensor
from .whole import hurry


@dataclass(eq=False)
class Capture:
    """State that a step reads or changes, as it is met; `restore` puts all of it back."""

    storages: dict[Storage, tuple[Any, int, int]] = field(default_factory=dict)
    tensors: dict[Tensor, tuple[Any, ...]] = field(default_factory=dict)
    numbers: dict[tuple[int, str], tuple[dict[str, Any], str]] = field(default_factory=dict)
    settings: dict[tuple[int, str], tuple[Any, str, Any]] = field(default_factory=dict)
    values: dict[tuple[int, str], Any] = field(default_factory=dict)
    grads: dict[Tensor, str] = field(default_factory=dict)  # what came first: "read" or "set"

    def take(self, state: Storage | Tensor, grad: str = "") -> None:
        """Note what is met for the first time, as it was."""
        if isinstance(state, Tensor):
            if grad:
                self.grads.setdefault(state, grad)
            if state not in self.tensors:
                self.tensors[state] = (
                    state._node,
                    state._index,
                    state._requires,
                    state._retains,
                    state._held_grad,
                )
            state = state._storage
        if state not in self.storages:
            self.storages[state] = state.array, state.version, state.spent

    def number(self, holder: dict[str, Any], name: str) -> Any:
        """A setting that may change from call to call: an input of the program."""
        key = id(holder), name
        self.numbers.setdefault(key, (holder, name))
        return self.values.get(key, holder[name])

    def setting(self, holder: Any, name: str, value: Any) -> None:
        """A setting that the program depends on."""
        self.settings.setdefault((id(holder), name), (holder, name, value))

    def restore(self) -> None:
        """Put everything back as it was."""
        for storage, (array, version, spent) in self.storages.items():
            storage.array, storage.version, storage.spent = array, version, spent
        for tensor, before in self.tensors.items():
            node, index, requires, retains, grad = before
            tensor._node, tensor._index, tensor._requires = node, index, requires
            tensor._retains, tensor._held_grad = retains, grad


@dataclass(eq=False)
class _Found:
    """What one run changed: storages with their new arrays, and tensors with a new `.grad`.

    `spent` tells which of both hold gradients that an optimiser's step has used.
    """

    out: Any
    written: dict[Storage, Any]
    grads: dict[Tensor, Tensor | None]
    spent: dict[Storage | Tensor, bool]


def _run(fun: Callable[..., Any], capture: Capture, args: Any) -> _Found:
    """Run a step under a capture and tell what it did; all is put back."""
    before = {storage: storage.array for storage in capture.storages}
    try:
        args, kwargs = args
        out = fun(*args, **kwargs)
        for storage, (array, *_) in capture.storages.items():
            before.setdefault(storage, array)
        written = {s: s.array for s, array in before.items() if s.array is not array}
        grads = {
            tensor: tensor._held_grad
            for tensor, state in capture.tensors.items()
            if tensor._held_grad is not state[-1] or capture.grads.get(tensor) == "set"
        }
        spent: dict[Storage | Tensor, bool] = {
            s: s.spent >= 0 for s, was in capture.storages.items() if s.spent != was[-1]
        }
        spent |= {t: g._storage.spent >= 0 for t, g in grads.items() if g is not None}
        return _Found(out, written, grads, spent)
    finally:
        capture.restore()


@dataclass(eq=False)
class _Arguments:
    """A call's arguments: arrays, and where tensors stand among them."""

    tree: Any
    leaves: list[Any]

    @classmethod
    def of(cls, args: Any, kwargs: Any) -> _Arguments:
        leaves, tree = jax.tree.flatten((args, kwargs), is_leaf=_is_tensor)
        return cls(tree, leaves)

    @property
    def key(self) -> Any:
        """What tells calls of different structure apart."""
        kinds = ((x._requires, x._held_grad is None) for x in self.leaves if _is_tensor(x))
        return self.tree, tuple(map(_is_tensor, self.leaves)), tuple(kinds)

    @property
    def paths(self) -> list[str]:
        """The leaves' paths: `args[0]['w']`."""
        numbered = jax.tree.unflatten(self.tree, range(len(self.leaves)))
        return [path_text(path) for path, _ in jax.tree.leaves_with_path(numbered)]

    @cached_property
    def arrays(self) -> list[Any]:
        """The leaves' arrays, as they are when first asked for."""
        return [x.value if _is_tensor(x) else x for x in self.leaves]

    def filled(self, arrays: Sequence[Any]) -> tuple[Any, list[Any]]:
        """The arguments with other arrays in new tensors; and those."""
        new: list[Any] = []
        for x, array in zip(self.leaves, arrays, strict=True):
            if _is_tensor(x):
                made = Tensor(array)
                made._requires = x._requires
                new.append(made)
            else:
                new.append(array)
        return jax.tree.unflatten(self.tree, new), new


def _is_tensor(x: Any) -> bool:
    return isinstance(x, Tensor)


@dataclass(eq=False)
class _Variant:
    """A program of the step for one structure of its state."""

    given: list[Storage]
    kept: list[Storage]
    capture: Capture
    grads: list[tuple[Tensor, bool]]  # whose .grad is set, and whether to a tensor
    spent: dict[Storage | Tensor, bool]
    changed: list[int]  # tensors among the arguments whose values change
    got: list[int]  # those that get a gradient
    out: Any
    compiled: Any

    @property
    def holds(self) -> bool:
        """True while the state has the structure that the program was made for."""
        tensors, grads = self.capture.tensors, self.capture.grads
        same = all(tensor._requires == was[2] for tensor, was in tensors.items()) and all(
            (tensor._held_grad is None) == (tensors[tensor][-1] is None)
            for tensor, first in grads.items()
            if first == "read"
        )
        return same and all(_get(h, n) == v for h, n, v in self.capture.settings.values())

    def inputs(self, arguments: _Arguments) -> tuple[Any, ...]:
        """What the program is called with."""
        kept = [s.array for s in self.kept]
        seen = {*map(id, jax.tree.leaves(kept)), *map(id, arguments.arrays)}
        given = jax.tree.map(lambda x: _alone(x, seen), [s.array for s in self.given])
        numbers = [holder[name] for holder, name in self.capture.numbers.values()]
        return given, kept, numbers, arguments.arrays

    def __call__(self, arguments: _Arguments) -> Any:
        hurry()
        found = self.compiled(*self.inputs(arguments))
        (out, given, grads, changed, got), *health = (
            found if self.compiled.tells_health else (found,)
        )
        for storage, array in zip(self.given, given, strict=True):
            storage.array = array
            storage.version += 1
        rest = iter(grads)
        for tensor, is_there in self.grads:
            tensor._held_grad = Tensor(next(rest)) if is_there else None
        for state, is_spent in self.spent.items():
            storage = state if isinstance(state, Storage) else state._held_grad._storage  # type: ignore[union-attr]
            storage.spent = storage.version if is_spent else -1
        for i, array in zip(self.changed, changed, strict=True):
            arguments.leaves[i]._put(array)
        for i, array in zip(self.got, got, strict=True):
            arguments.leaves[i]._held_grad = Tensor(array)
        result = jax.tree.map(lambda x: Tensor(x), jax.tree.unflatten(self.out, out))
        return (result, *health) if health else result


def _alone(x: Any, seen: set[int]) -> Any:
    """An array to be given away: a copy, if it is held elsewhere in the same call."""
    if id(x) in seen:
        return x.copy()
    seen.add(id(x))
    return x


def _get(holder: Any, name: str) -> Any:
    return holder[name] if isinstance(holder, dict) else getattr(holder, name)


# Steps may share tensors, and one that is traced has abstract arrays in them for a while; and what
# a call changes, the next one begins with. So threads take turns, also with different steps.
_turn = threading.RLock()


class CompiledStep:
    """A compiled function whose state is passed in and out; it has the stages of the program."""

    def __init__(self, function: Any) -> None:
        """Of a function that `bp.compile` met state in."""
        self._function = function
        self._variants: dict[Any, list[_Variant]] = {}

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the step; tensors, gradients and optimisers are then as if it had run itself."""
        with _turn:
            arguments = _Arguments.of(args, kwargs)
            return self._variant(arguments)(arguments)

    def trace(self, *args: Any, **kwargs: Any) -> Any:
        """As of any compiled function."""
        with _turn:
            arguments = _Arguments.of(args, kwargs)
            variant = self._variant(arguments)
            return variant.compiled.trace(*variant.inputs(arguments))

    def lower(self, *args: Any, **kwargs: Any) -> Any:
        """As of any compiled function."""
        with _turn:
            arguments = _Arguments.of(args, kwargs)
            variant = self._variant(arguments)
            return variant.compiled.lower(*variant.inputs(arguments))

    def explain(self) -> Any:
        """Of the latest program."""
        return [each for group in self._variants.values() for each in group][-1].compiled.explain()

    def _variant(self, arguments: _Arguments) -> _Variant:
        known = self._variants.setdefault(arguments.key, [])
        for variant in known:
            if variant.holds:
                return variant
        known.append(self._made(arguments))
        return known[-1]

    def _made(self, arguments: _Arguments) -> _Variant:
        """Find the state, and compile the step as a function of it."""
        fun = self._function.__wrapped__
        capture = Capture()
        found: list[_Found] = []
        fresh: list[list[Any]] = []

        def look(arrays: Sequence[Any]) -> None:
            with watched(capture):
                args, leaves = arguments.filled(arrays)
                fresh.append(leaves)
                found.append(_run(fun, capture, args))

        look_at = arguments.arrays
        _staged(fun, look, look_at)
        given = list(found[0].written)
        kept = [s for s in capture.storages if s not in found[0].written]
        grads = [(t, g is not None) for t, g in found[0].grads.items()]
        tensors = [i for i, x in enumerate(fresh[0]) if _is_tensor(x)]
        changed = [i for i in tensors if fresh[0][i]._storage.version]
        got = [i for i in tensors if fresh[0][i]._held_grad is not None]
        outs = found[0].out
        out_tree = jax.tree.structure(jax.tree.map(lambda x: 0, outs, is_leaf=_is_tensor))

        def step(given_: Any, kept_: Any, numbers: Any, arrays: Any) -> Any:
            again = Capture(dict(capture.storages), dict(capture.tensors))
            again.values = dict(zip(capture.numbers, numbers, strict=True))
            with watched(again):
                args, leaves = arguments.filled(arrays)
                for storage, array in zip((*given, *kept), (*given_, *kept_), strict=True):
                    storage.array = array
                end = _run(fun, again, args)
            return (
                _arrays(end.out),
                [end.written.get(s, x) for s, x in zip(given, given_, strict=True)],
                [end.grads[t]._storage.array for t, there in grads if there],  # type: ignore[union-attr]
                [leaves[i]._storage.array for i in changed],
                [leaves[i]._held_grad._storage.array for i in got],
            )

        step.__name__ = getattr(fun, "__name__", "step")
        compiled = self._function.of_state(step, names_of(fun, (given, kept), arguments.paths))
        return _Variant(
            given, kept, capture, grads, found[0].spent, changed, got, out_tree, compiled
        )


def _staged(fun: Callable[..., Any], look: Callable[..., Any], arrays: Sequence[Any]) -> None:
    from ..compiler.diagnose import tracing

    with tracing(fun):
        jax.make_jaxpr(look)(arrays)


def _arrays(out: Any) -> list[Any]:
    leaves = jax.tree.leaves(out, is_leaf=_is_tensor)
    return [x._storage.array if _is_tensor(x) else x for x in leaves]
