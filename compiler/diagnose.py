"""Errors at the user's line: what JAX raises while tracing, said in terms of the user's program."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any

import jax

from ..ir.errors import (
    ArgumentError,
    BackpassError,
    ConcretizationError,
    DonationError,
    LeakError,
)
from ..ir.source import innermost, shortened
from ..ir.types import type_of


def caller_line() -> str:
    """Return `file:line` of the innermost frame of user code on the stack."""
    return innermost(_stack()) or "unknown line"


def _stack() -> Iterator[tuple[str, int]]:
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        yield frame.f_code.co_filename, frame.f_lineno
        frame = frame.f_back


def raised_at(error: BaseException) -> str:
    """Return `file:line` of the innermost frame of user code in an error's traceback."""
    frames = reversed(traceback.extract_tb(error.__traceback__))
    return innermost((frame.filename, frame.lineno) for frame in frames) or "unknown line"


def defined_at(fun: Callable[..., Any]) -> str:
    """Return `name (file:line)` of a function."""
    inner = fun
    while hasattr(inner, "__wrapped__"):
        inner = inner.__wrapped__
    code = getattr(inner, "__code__", None)
    name = getattr(fun, "__name__", type(fun).__name__)
    return f"{name} ({shortened(code.co_filename, code.co_firstlineno)})" if code else name


@contextmanager
def tracing(fun: Callable[..., Any]) -> Iterator[None]:
    """Turn what JAX raises while `fun` is traced into our errors; note the line on all others."""
    try:
        yield
    except BackpassError:
        raise
    except jax.errors.UnexpectedTracerError as error:
        raise _leak(fun, error) from error
    except jax.errors.ConcretizationTypeError as error:
        raise _concretization(fun, error) from error
    except Exception as error:
        note = f"backpass: raised at {raised_at(error)} while tracing {defined_at(fun)}"
        if note not in getattr(error, "__notes__", ()):
            error.add_note(note)
        raise


def _concretization(fun: Callable[..., Any], error: Exception) -> ConcretizationError:
    wants = {
        jax.errors.TracerBoolConversionError: (
            "a Python bool",
            "use jnp.where, jax.lax.cond or jax.lax.while_loop; or make the argument static with "
            "static_argnames if it decides the shape of the program",
        ),
        jax.errors.TracerIntegerConversionError: (
            "a Python integer",
            "index with jnp.take or jax.lax.dynamic_slice; or make the argument static with "
            "static_argnames",
        ),
        jax.errors.TracerArrayConversionError: (
            "a NumPy array",
            "use jax.numpy in place of numpy inside the function",
        ),
    }
    asked, todo = next(
        (text for kind, text in wants.items() if isinstance(error, kind)),
        ("a concrete value", "compute it outside the function, or make the argument static"),
    )
    found = str(error).split("\n")[0]
    return ConcretizationError(
        f"Python asked a traced array for {asked}, which has no value while {defined_at(fun)} is "
        f"traced\n  at {raised_at(error)}; {todo}\n  JAX says: {found}"
    )


def _leak(fun: Callable[..., Any], error: Exception) -> LeakError:
    return LeakError(
        f"an array from an earlier trace was used in {defined_at(fun)}: a side effect (a global, "
        f"a list, an attribute) kept it beyond the function that made it\n  at "
        f"{raised_at(error)}; return it from the function and pass it in as an argument"
    )


def not_an_array(fun: Callable[..., Any], path: str, value: Any) -> ArgumentError:
    """Say which argument is no array, and what to do."""
    return ArgumentError(
        f"{defined_at(fun)} wants arrays as arguments, got {type(value).__name__} at {path}\n"
        f"  at {caller_line()}; name it in static_argnames if it is a hashable setting of the "
        "program, or close over it"
    )


def explain_failure(
    fun: Callable[..., Any], error: Exception, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> Exception:
    """Say what a failed call means; an error that needs no translation is given back."""
    if isinstance(error, BackpassError):
        return error
    if isinstance(error, jax.errors.UnexpectedTracerError):
        return _leak(fun, error)
    for path, leaf in jax.tree_util.tree_leaves_with_path((args, kwargs)):
        where = _argument(path)
        if isinstance(leaf, jax.Array) and not isinstance(leaf, jax.core.Tracer):
            if leaf.is_deleted():
                return DonationError(
                    f"{defined_at(fun)} got an array at {where} whose buffer was donated to an "
                    f"earlier call, {type_of(leaf)}\n  at {caller_line()}; use what that call "
                    "returned in its place, or leave the argument out of donate_argnums"
                )
    return error


def _argument(path: Any) -> str:
    group, *rest = path
    if group.idx == 0:
        return "args" + jax.tree_util.keystr(tuple(rest))
    return str(rest[0].key) + jax.tree_util.keystr(tuple(rest[1:]))
