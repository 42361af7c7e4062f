"""`bp.gradcheck`: our derivatives against finite differences, element by element.

    J[i, j] = (f(x + eps e_j)_i - f(x - eps e_j)_i) / (2 eps)

Complex numbers count as pairs of real ones.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from ..ir.errors import ArgumentError, GradcheckError
from ..ir.types import is_complex, is_inexact, type_of
from .derivatives import linearize, vjp
from .diagnose import caller_line, defined_at, is_array

MODES = ("rev", "fwd")
# Central differences lose two thirds of the digits of a dtype, at the cube root of its precision.
EPS = {16: 1e-1, 32: 5e-3, 64: 1e-5}
TOLERANCE = {16: 1e-1, 32: 1e-2, 64: 1e-6}


def gradcheck(
    f: Callable[..., Any],
    args: Sequence[Any],
    order: int = 1,
    modes: str | Sequence[str] = MODES,
    atol: float | None = None,
    rtol: float | None = None,
    eps: float | None = None,
) -> None:
    """Compare derivatives of `f` at `args` with finite differences, up to `order`.

    Args:
        f: a function of arrays, smooth around `args`; takes and returns pytrees.
        args: tuple of arguments. Leaves of inexact dtype are differentiated by.
        order: 2 checks, besides, the derivative of a cotangent pulled back; and so on.
        modes: `"rev"`, `"fwd"` or both.
        atol: absolute tolerance; by default 1e-6 in float64, 1e-2 in float32.
        rtol: relative tolerance, the same.
        eps: width of the differences; by default 1e-5 in float64, 5e-3 in float32.

    Raises:
        GradcheckError: a derivative is off; names the argument's path, the indices of input and
            output, and both values.
        ArgumentError: `args` is no tuple, a leaf is no array, or a mode is unknown.
    """
    modes = (modes,) if isinstance(modes, str) else tuple(modes)
    where = caller_line()
    if not isinstance(args, tuple | list):
        raise ArgumentError(
            f"gradcheck wants args as a tuple, got {type(args).__name__}\n  at {where}; write "
            "bp.gradcheck(f, (x,))"
        )
    if unknown := set(modes) - set(MODES):
        raise ArgumentError(f"gradcheck has modes {MODES}, got {sorted(unknown)}\n  at {where}")
    leaves = jax.tree.leaves(args)
    if not all(map(is_array, leaves)):
        raise ArgumentError(f"gradcheck of {defined_at(f)} wants arrays\n  at {where}")
    bits = [_bits(x) for x in leaves if is_inexact(type_of(jax.typeof(x)).dtype)]
    least = min(bits, default=64)
    settings = (
        TOLERANCE[least] if atol is None else atol,
        TOLERANCE[least] if rtol is None else rtol,
        EPS[least] if eps is None else eps,
    )
    _check(f, tuple(args), order, modes, settings, f"gradcheck of {defined_at(f)}\n  at {where}")


def _check(
    f: Callable[..., Any],
    args: tuple[Any, ...],
    order: int,
    modes: Sequence[str],
    settings: tuple[float, float, float],
    title: str,
) -> None:
    space = _Space(args)
    atol, rtol, eps = settings
    wanted = _by_differences(f, space, eps)
    found = {"rev": _by_rows, "fwd": _by_columns}
    for mode in modes:
        ours = found[mode](f, space)
        off = ~np.isclose(ours, wanted, rtol, atol, equal_nan=True)
        if off.any():
            size = np.where(off, np.abs(ours - wanted), -1.0)
            row, column = np.unravel_index(int(np.nanargmax(size)), size.shape)
            raise GradcheckError(
                f"{title}: {mode} mode gives {ours[row, column]:.6g}, finite differences "
                f"{wanted[row, column]:.6g}, for d {_Space(f(*args), 'out').label(int(row))} / "
                f"d {space.label(int(column))}; {int(off.sum())} of {off.size} entries are off. "
                "Look at the rule of the ops between them; kinks and float32 need other points, "
                "eps or tolerances"
            )
    if order > 1:
        y = f(*args)
        ct = _Space(y, "out").random(np.random.default_rng(order))

        def pulled(*xs: Any) -> Any:
            cts = vjp(f, *xs)[1](ct)
            return [t for t in jax.tree.leaves(cts) if is_inexact(t.dtype)]

        _check(pulled, args, order - 1, modes, settings, f"{title} (its pullback)")


def _bits(x: Any) -> int:
    dtype = np.dtype(type_of(jax.typeof(x)).dtype)
    return int(dtype.itemsize * 8 // (2 if is_complex(dtype) else 1))


class _Space:
    """The inexact leaves of a tree as one vector of real numbers, and back."""

    def __init__(self, tree: Any, root: str = "args") -> None:
        paths, self.tree = jax.tree_util.tree_flatten_with_path(tree)
        self.leaves = [leaf for _, leaf in paths]
        self.types = [type_of(jax.typeof(leaf)) for leaf in self.leaves]
        self.names = [root + jax.tree_util.keystr(path) for path, _ in paths]
        self.sizes = [
            (t.size * (1 + is_complex(t.dtype)) if is_inexact(t.dtype) else 0) for t in self.types
        ]
        self.size = sum(self.sizes)

    def vector(self, tree: Any = None) -> Any:
        """The numbers of a tree like this one, in double precision where there is one."""
        leaves = self.leaves if tree is None else jax.tree.leaves(tree)
        parts = []
        for x, t in zip(leaves, self.types, strict=True):
            if is_inexact(t.dtype):
                flat = np.asarray(x).ravel()
                pair = np.stack([flat.real, flat.imag], -1) if is_complex(t.dtype) else flat
                parts.append(pair.astype(np.float64).ravel())
        return np.concatenate(parts) if parts else np.zeros(0)

    def unflatten(self, vector: Any, rest: Any = None) -> Any:
        """Tree of a vector; leaves that are not inexact stay, or are `rest(leaf)`."""
        found, start = [], 0
        for leaf, t, n in zip(self.leaves, self.types, self.sizes, strict=True):
            part, start = np.asarray(vector[start : start + n]), start + n
            if not is_inexact(t.dtype):
                found.append(leaf if rest is None else rest(leaf))
                continue
            if is_complex(t.dtype):
                part = part[0::2] + 1j * part[1::2]
            found.append(part.astype(t.dtype).reshape(t.shape))
        return jax.tree.unflatten(self.tree, found)

    def unit(self, i: int) -> Any:
        """The tree of a tangent: one at i."""
        return self.unflatten(np.eye(1, self.size, i)[0], _float0)

    def random(self, rng: np.random.Generator) -> Any:
        """The tree of a random tangent."""
        return self.unflatten(rng.normal(size=self.size), _float0)

    def signs(self) -> Any:
        """-1 for imaginary parts, 1 for all others."""
        return np.concatenate(
            [
                np.where(np.arange(n) % 2, -1.0, 1.0) if is_complex(t.dtype) else np.ones(n)
                for t, n in zip(self.types, self.sizes, strict=True)
            ]
            or [np.zeros(0)]
        )

    def label(self, i: int) -> str:
        """Path and index of the i-th number."""
        for name, t, n in zip(self.names, self.types, self.sizes, strict=True):
            if i < n:
                part = (".real", ".imag")[i % 2] if is_complex(t.dtype) else ""
                place = i // 2 if is_complex(t.dtype) else i
                index = ", ".join(map(str, np.unravel_index(place, t.shape)))
                return f"{name}[{index}]{part}" if t.shape else name + part
            i -= n
        raise IndexError(i)


def _float0(leaf: Any) -> Any:
    return np.zeros(np.shape(leaf), jax.dtypes.float0)


def _by_differences(f: Callable[..., Any], space: _Space, eps: float) -> Any:
    run = jax.jit(f)
    out = _Space(run(*jax.tree.unflatten(space.tree, space.leaves)), "out")
    at, columns = space.vector(), []
    for i in range(space.size):
        step = np.eye(1, space.size, i)[0] * eps
        ahead, behind = (space.unflatten(at + sign * step) for sign in (1, -1))
        width = (space.vector(ahead) - space.vector(behind))[i]
        columns.append((out.vector(run(*ahead)) - out.vector(run(*behind))) / width)
    return np.stack(columns, -1) if columns else np.zeros((out.size, 0))


def _by_columns(f: Callable[..., Any], space: _Space) -> Any:
    y, linear = linearize(f, *jax.tree.unflatten(space.tree, space.leaves))
    out = _Space(y, "out")
    columns = [out.vector(linear(*space.unit(i))) for i in range(space.size)]
    return np.stack(columns, -1) if columns else np.zeros((out.size, 0))


def _by_rows(f: Callable[..., Any], space: _Space) -> Any:
    """Rows by cotangents. A pairing ct . y is not conjugated, so that imaginary parts turn sign."""
    y, pullback = vjp(f, *jax.tree.unflatten(space.tree, space.leaves))
    out = _Space(y, "out")
    rows = [space.vector(pullback(out.unit(i))) for i in range(out.size)]
    if not rows:
        return np.zeros((0, space.size))
    return out.signs()[:, None] * np.stack(rows) * space.signs()
