"""Errors at the user's line: what JAX raises while tracing, said in terms of the user's program."""

from __future__ import annotations

import inspect
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any

import jax

from ..ir.errors import (
    ArgumentError,
    ArrayError,
    BackpassError,
    BoolError,
    ConcretizationError,
    DonationError,
    IntegerError,
    LeakError,
    MaskError,
)
from ..ir.source import innermost, rank, shortened
from ..ir.types import type_of


def caller_line() -> str:
    """Return `file:line` of the innermost frame of user code on the stack."""
    return innermost(_stack()) or "unknown line"


def caller_level() -> int:
    """Return the `stacklevel` at which a warning of the caller's shows the user's line."""
    frame: FrameType | None = sys._getframe(1)
    best, found, level = 3, 1, 1
    while frame is not None and best > 0:
        kind = rank(frame.f_code.co_filename)
        if kind < best:
            best, found = kind, level
        frame, level = frame.f_back, level + 1
    return found


def _stack() -> Iterator[tuple[str, int]]:
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        yield frame.f_code.co_filename, frame.f_lineno
        frame = frame.f_back


def raised_at(error: BaseException) -> str:
    """`file:line` of the innermost frame of user code in an error's traceback, or nothing."""
    frames = reversed(traceback.extract_tb(error.__traceback__))
    return innermost((frame.filename, frame.lineno) for frame in frames)


def defined_at(fun: Callable[..., Any]) -> str:
    """Return `name (file:line)` of a function."""
    inner = fun
    while hasattr(inner, "__wrapped__"):
        inner = inner.__wrapped__
    code = getattr(inner, "__code__", None)
    name = getattr(fun, "__name__", type(fun).__name__)
    return f"{name} ({shortened(code.co_filename, code.co_firstlineno)})" if code else name


def in_place_of(fun: Callable[..., Any], stand_in: Callable[..., Any]) -> Callable[..., Any]:
    """Return `stand_in`, which JAX's own messages now call by the name and place of `fun`."""
    stand_in.__signature__ = inspect.signature(stand_in)  # type: ignore[attr-defined]
    stand_in.__wrapped__ = fun  # type: ignore[attr-defined]
    return stand_in


@contextmanager
def tracing(fun: Callable[..., Any]) -> Iterator[None]:
    """Turn what JAX raises while `fun` is traced into our errors; note the line on all others."""
    try:
        yield
    except BackpassError:
        raise
    except jax.errors.UnexpectedTracerError as error:
        raise leaked(fun, error) from error
    except CONCRETE as error:
        raise _concretization(fun, error) from error
    except Exception as error:
        where = raised_at(error) or caller_line()
        note = f"backpass: raised at {where} while tracing {defined_at(fun)}"
        if note not in getattr(error, "__notes__", ()):
            error.add_note(note)
        raise


CONCRETE = (
    jax.errors.ConcretizationTypeError,
    jax.errors.NonConcreteBooleanIndexError,
    jax.errors.TracerArrayConversionError,
    jax.errors.TracerIntegerConversionError,
)

_WANTS: tuple[tuple[type[Exception], type[ConcretizationError], str, str], ...] = (
    (
        jax.errors.TracerBoolConversionError,
        BoolError,
        "a Python bool",
        "use jnp.where, jax.lax.cond or jax.lax.while_loop; or make the argument static with "
        "static_argnames if it decides the shape of the program",
    ),
    (
        jax.errors.TracerIntegerConversionError,
        IntegerError,
        "a Python integer",
        "index with jnp.take or jax.lax.dynamic_slice; or make the argument static with "
        "static_argnames",
    ),
    (
        jax.errors.TracerArrayConversionError,
        ArrayError,
        "a NumPy array",
        "use jax.numpy in place of numpy inside the function",
    ),
    (
        jax.errors.NonConcreteBooleanIndexError,
        MaskError,
        "the number of true elements",
        "keep the shape with jnp.where(mask, x, fill), or sum over x * mask",
    ),
    (
        Exception,
        ConcretizationError,
        "a concrete value",
        "compute it outside the function, or make the argument static with static_argnames",
    ),
)


def _concretization(fun: Callable[..., Any], error: Exception) -> ConcretizationError:
    _, kind, asked, todo = next(row for row in _WANTS if isinstance(error, row[0]))
    found = str(error).split("\n")[0]
    return kind(
        f"Python asked a traced array for {asked}, which has no value while {defined_at(fun)} is "
        f"traced\n  at {raised_at(error) or caller_line()}; {todo}\n  JAX says: {found}"
    )


_MADE = re.compile(r"created on line (.+?):(\d+):")


def leaked(fun: Callable[..., Any], error: Exception) -> LeakError:
    """Say where a leaked tracer was made and where it was met; or what else JAX found."""
    where = raised_at(error) or caller_line()
    if not str(error).startswith("Encountered an unexpected tracer"):
        return LeakError(f"{str(error).split(chr(10))[0]}\n  at {where}")
    made = _MADE.search(str(error))
    maker = f" at {shortened(made[1], made[2])}" if made else ""
    return LeakError(
        f"an array made{maker} in an earlier trace was used in {defined_at(fun)}: a side effect "
        "(a global, a list, an attribute) kept it beyond the function that made it\n  at "
        f"{where}; return it from the function and pass it in as an argument"
    )


def not_an_array(fun: Callable[..., Any], path: str, value: Any) -> ArgumentError:
    """Say which argument is no array, and what to do."""
    return ArgumentError(
        f"{defined_at(fun)} wants arrays as arguments, got {type(value).__name__} at {path}\n"
        f"  at {caller_line()}; name it in static_argnames if it is a hashable setting of the "
        "program, or close over it"
    )


def mutable_array(fun: Callable[..., Any], path: str, kind: Any) -> ArgumentError:
    """Say which argument is a `jax.Ref`, and what to do."""
    return ArgumentError(
        f"{defined_at(fun)} wants arrays as arguments, got a mutable one, {kind}, at {path}\n"
        f"  at {caller_line()}; give its value and return the new one"
    )


def check_results(fun: Callable[..., Any], out: Any) -> Any:
    """Return `out` if all its leaves are arrays. Raises `ArgumentError` with the leaf's path."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(out):
        if not is_array(leaf):
            raise ArgumentError(
                f"{defined_at(fun)} wants to return arrays, got {type(leaf).__name__} at result"
                f"{jax.tree_util.keystr(path)}\n  at {caller_line()}; return arrays, numbers, None "
                "or pytrees of them"
            )
    return out


def is_array(x: Any) -> bool:
    """True for what JAX takes as an array: arrays, tracers, NumPy and Python numbers."""
    try:
        jax.typeof(x)
    except TypeError:
        return False
    return True


def explain_failure(
    fun: Callable[..., Any],
    error: Exception,
    arrays: Sequence[tuple[str, Any]],
    static: Sequence[tuple[str, Any]],
    exhausted: Callable[[Exception], Exception],
) -> Exception:
    """Say what a failed call means; an error that needs no translation is given back.

    `arrays` and `static` are the call's arguments with their paths; `exhausted` explains that
    memory ran out.
    """
    if isinstance(error, BackpassError):
        return error
    if is_exhausted(error):
        return exhausted(error)
    if isinstance(error, jax.errors.UnexpectedTracerError):
        return leaked(fun, error)
    for path, leaf in arrays:
        if not is_array(leaf):
            return not_an_array(fun, path, leaf)
        if _is_deleted(leaf):
            return DonationError(
                f"{defined_at(fun)} got an array at {path} whose buffer was donated to an earlier "
                f"call, {type_of(leaf)}\n  at {caller_line()}; use what that call returned in its "
                "place, or leave the argument out of donate_argnums"
            )
    for path, value in static:
        if not _is_hashable(value):
            return ArgumentError(
                f"{defined_at(fun)} wants hashable static arguments, got {type(value).__name__} "
                f"at {path}\n  at {caller_line()}; pass a tuple or a frozen dataclass"
            )
    return error


def is_exhausted(error: BaseException) -> bool:
    """True for XLA's word that it has no memory left."""
    told = isinstance(error, jax.errors.JaxRuntimeError)
    return told and "RESOURCE_EXHAUSTED" in str(error)


def _is_deleted(leaf: Any) -> bool:
    concrete = isinstance(leaf, jax.Array) and not isinstance(leaf, jax.core.Tracer)
    return concrete and leaf.is_deleted()


def _is_hashable(value: Any) -> bool:
    try:
        hash(value)
    except TypeError:
        return False
    return True
