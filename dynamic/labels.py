"""Names of a step's state, as its function has them: `model.0.weight`, `scale`."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from .storage import Storage
from .tensor import Tensor


def names_of(
    fun: Callable[..., Any], state: Sequence[Sequence[Storage]], arguments: Sequence[str]
) -> dict[str, str]:
    """Names by the paths of the program that `CompiledStep` makes: `args[0][2]`, `args[3][0]`.

    Tensors and modules are found among the variables that `fun` reads; what is held by something
    else, a list say, is `tensor 1`, `tensor 2`, ...
    """
    known: dict[int, str] = {}
    for name, value in _read(fun):
        for path, tensor in _tensors(name, value):
            known.setdefault(id(tensor._storage), path)
    names: dict[str, str] = {}
    unknown = 0
    for i, storages in enumerate(state):
        for j, storage in enumerate(storages):
            unknown += id(storage) not in known
            names[f"args[{i}][{j}]"] = known.get(id(storage), f"tensor {unknown}")
    return names | {f"args[3][{j}]": path for j, path in enumerate(arguments)}


def _read(fun: Callable[..., Any]) -> Iterator[tuple[str, Any]]:
    """The variables that a function reads of around it, and the object that it is a method of."""
    if (owner := getattr(fun, "__self__", None)) is not None:
        yield "self", owner
    try:
        found = inspect.getclosurevars(inspect.unwrap(fun))
    except TypeError:
        return
    yield from {**found.globals, **found.nonlocals}.items()


def _tensors(name: str, value: Any) -> Iterator[tuple[str, Tensor]]:
    if isinstance(value, Tensor):
        yield name, value
    elif (named := getattr(value, "named_parameters", None)) is not None and _is_module(value):
        yield from ((f"{name}.{path}", tensor) for path, tensor in named())


def _is_module(value: Any) -> bool:
    from .nn.module import Module

    return isinstance(value, Module)
