"""What a command line names: `FILE_OR_MODULE:FUNCTION`, and argument types such as `f32[8,512]`."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import jax

from ..ir.errors import ArgumentError
from ..ir.types import dtype_from_name

_SPEC = re.compile(r"([a-z0-9_<>]+)\[([0-9, ]*)\]")
_LARGEST = 10**18  # of a dimension, as in the text form of graphs


def parse_spec(text: str) -> jax.ShapeDtypeStruct:
    """`f32[8,512]` as a `jax.ShapeDtypeStruct`. Raises `ArgumentError`."""
    match = _SPEC.fullmatch(text.strip())
    try:
        if match is None:
            raise ValueError(text)
        shape = tuple(int(size) for size in match[2].split(",") if size.strip())
        if max(shape, default=0) >= _LARGEST:
            raise ValueError(text)
        return jax.ShapeDtypeStruct(shape, dtype_from_name(match[1]))
    except (KeyError, ValueError):
        raise ArgumentError(
            f"expected an argument type such as f32[8,512] or i32[], got {text[:100]!r}"
        ) from None


def load_target(text: str) -> tuple[Callable[..., Any], Callable[[], Sequence[Any]]]:
    """Return the function that `text` names, and what gives its example arguments."""
    where, _, name = text.rpartition(":")
    if not where or not name:
        raise ArgumentError(f"expected FILE_OR_MODULE:FUNCTION, got {text!r}")
    module = _module(where)
    function: Any = module
    for part in name.split("."):
        if not hasattr(function, part):
            raise ArgumentError(f"{where} has no function {name!r}")
        function = getattr(function, part)
    if not callable(function):
        raise ArgumentError(f"{text} is no function but a {type(function).__name__}")
    return function, lambda: _example(function, module, text)


def check_call(text: str, function: Callable[..., Any], args: Sequence[Any]) -> None:
    """Raise `ArgumentError` where the function that `text` names does not take so many."""
    try:
        signature = inspect.signature(function)
    except ValueError:  # written in C, it tells none
        return
    try:
        signature.bind(*args)
    except TypeError as error:
        raise ArgumentError(
            f"{text} does not take {len(args)} arguments: {error}\n  it is {text}{signature}"
        ) from None


def _module(where: str) -> ModuleType:
    path = Path(where)
    if path.suffix != ".py":
        if where.startswith("."):
            raise ArgumentError(f"cannot import {where!r}: give the module's full name, or a file")
        try:
            return importlib.import_module(where)
        except ModuleNotFoundError as error:
            raise ArgumentError(f"cannot import {where!r}: {error}") from error
    if not path.is_file():
        raise ArgumentError(f"there is no file {where!r}")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    sys.path.insert(0, str(path.parent.resolve()))
    spec.loader.exec_module(module)
    return module


def _example(function: Any, module: ModuleType, text: str) -> Sequence[Any]:
    found = getattr(function, "example_args", None) or getattr(module, "example_args", None)
    if found is None:
        raise ArgumentError(
            f"{text} needs argument types, such as f32[8,512]; or give its file a function "
            "example_args() that returns its arguments"
        )
    args = found() if callable(found) else found
    return args if isinstance(args, tuple | list) else (args,)
