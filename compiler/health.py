"""`bp.Health`: what a compiled step with `health=True` tells of its gradients besides its result.

    state        what is so
    -----------  -----------------------------------------------------------------------------
    non-finite   a NaN or an infinity in the gradient, or a norm of the parameter that is none
    exploding    the update is `LONG` times as long as the parameter or more; where the update is
                 not known, the gradient is `STEEP` times as long
    dead         every element of the gradient is 0
    vanishing    the gradient's root mean square is below `FAINT` of the largest parameter's
    stalled      there is a gradient, and the parameter stays as it was, to the bit
    fine         none of these
    unknown      the gradient is not known: it was not taken by `bp.grad`
    not run      nothing has taken the gradient: a branch that is not taken, a loop of no steps

The first that is so counts. A parameter counts as no shorter than one of its size with the median
root mean square, so that biases that begin with zeros may grow. Norms are of squares in float32
(float64 for as wide gradients): they are inf above 1.8e19, and 0 below 1e-23.

Source: Glorot and Bengio 2010 (gradients by layer); Pascanu et al. 2013 (exploding gradients).
"""

from __future__ import annotations

import difflib
import functools
import html
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ..ir.errors import ArgumentError
from ..ir.tables import table
from ..passes.health import Row, measured
from .health_plot import plot
from .program import Program

LONG = 1.0  # norm of an update, beside its parameter's
STEEP = 1e3  # norm of a gradient, beside its parameter's
FAINT = 1e-4  # root mean square of a gradient, beside the largest one's
STATES = "non-finite exploding dead vanishing stalled fine unknown".split() + ["not run"]


@dataclass(frozen=True)
class Reading:
    """A parameter in one step, as Python numbers; None is unknown.

    `gradient_norm` is the root mean square of its norms where the step takes the gradient several
    times (`runs`); `zeros` is the fraction of the gradient's elements that are 0, `nans` and
    `infinities` are numbers of elements.
    """

    name: str
    size: int
    source: str
    gradient_norm: float | None
    parameter_norm: float | None
    update_norm: float | None
    zeros: float | None
    nans: int
    infinities: int
    runs: int
    state: str = "fine"

    @property
    def update_ratio(self) -> float | None:
        """The update's norm beside the parameter's; inf for what leaves 0."""
        if self.update_norm is None or self.parameter_norm is None:
            return None
        if self.parameter_norm == 0:
            return math.inf if self.update_norm else 0.0
        return self.update_norm / self.parameter_norm

    @property
    def rms(self) -> float | None:
        """Root mean square of the gradient's elements."""
        if self.gradient_norm is None:
            return None
        return self.gradient_norm / math.sqrt(max(self.size, 1))

    def cells(self) -> tuple[str, ...]:
        """As text: name, norms, update ratio, zeros, non-finite elements, state."""
        norms = (self.gradient_norm, self.parameter_norm, self.update_ratio)
        told = self.gradient_norm is not None
        zeros = "unknown" if self.zeros is None else f"{self.zeros:.1%}"
        bad = f"{self.nans + self.infinities:,}" if told else "unknown"
        return (self.name, *map(_number, norms), zeros, bad, self.state)


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=["norms", "counts"], meta_fields=["rows"]
)
@dataclass(frozen=True, eq=False)
class Health:
    """Gradients, parameters and updates of one step, a row for each parameter.

    A pytree of two arrays, which nothing reads off the device until it is asked for; `rows` tell
    what they are of. A parameter whose leading axis the function scans over has a row for each of
    its layers. Inside `jax.lax.scan` and the like the arrays get leading dimensions: `steps`.

    norms: f32[rows, 3], of gradient, parameter and update
    counts: i32[rows, 4], the gradient's zeros, NaNs and infinities, and how often it was taken
    """

    norms: Any
    counts: Any
    rows: tuple[Row, ...]

    @property
    def steps(self) -> tuple[Health, ...]:
        """One for each step, where the arrays are those of several."""
        if np.ndim(self.norms) == 2:
            return (self,)
        norms, counts = jax.device_get((self.norms, self.counts))
        each = (x.reshape(-1, *x.shape[-2:]) for x in (norms, counts))
        return tuple(Health(a, b, self.rows) for a, b in zip(*each, strict=True))

    @property
    def readings(self) -> tuple[Reading, ...]:
        """The rows as numbers, in the order of the program; of several steps the last."""
        steps = self.steps
        if not steps:
            return ()
        norms, counts = jax.device_get((steps[-1].norms, steps[-1].counts))
        made = [
            _reading(row, [float(x) for x in a], [int(n) for n in b])
            for row, a, b in zip(self.rows, norms, counts, strict=True)
        ]
        return tuple(_judged(made))

    def ranked(self) -> tuple[Reading, ...]:
        """The rows, the worst first: by state as in the table above, then by steepness."""
        return tuple(sorted(self.readings, key=lambda r: (STATES.index(r.state), -_steepness(r))))

    def names(self, state: str) -> tuple[str, ...]:
        """Names of the parameters in a state: `h.names("dead")`. Raises `ArgumentError`."""
        if state not in STATES:
            raise ArgumentError(f"there is no state {state!r}; the states are {', '.join(STATES)}")
        return tuple(each.name for each in self.readings if each.state == state)

    def __getitem__(self, name: str) -> Reading:
        """One parameter by its name; of one with layers all together. Raises `ArgumentError`."""
        found = self.readings
        own = [r for r in found if r.name == name]
        own = own or [r for r, row in zip(found, self.rows, strict=True) if row.name == name]
        if own:
            return _together(name, own)
        known = [r.name for r in found]
        near = difflib.get_close_matches(name, known, 3, 0.0) or ["none"]
        raise ArgumentError(f"there is no parameter {name!r}; there is {', '.join(near)}")

    @staticmethod
    def plot(histories: Health | Iterable[Health], path: str | Path) -> None:
        """Draw gradient norms and update ratios over the steps, as an image.

        Args:
            histories: a `Health` for each step, or one of many steps.
            path: the file; its ending says which format: .png, .svg, .pdf.

        Raises:
            ArgumentError: matplotlib is not installed, there are no steps, or their rows differ.
        """
        given = [histories] if isinstance(histories, Health) else list(histories)
        steps = [step for each in given for step in each.steps]
        if not steps or any(step.rows != steps[0].rows for step in steps):
            found = "steps of different programs" if steps else "none"
            raise ArgumentError(f"plot wants the Health of one step or more, got {found}")
        plot([step.readings for step in steps], Path(path))

    def __str__(self) -> str:
        """The table, the worst first; in a trace, where there are no numbers, what it is of."""
        if not _is_concrete(self.norms):
            return repr(self)
        found = self.ranked()
        if not found:
            return "no gradients: nothing here was differentiated by bp.grad"
        head = "parameter gradient parameter update zeros non-finite state".split()
        head[1:4] = "gradient norm", "parameter norm", "update / parameter"
        many = np.ndim(self.norms) > 2
        told = [f"the last of {len(self.steps)} steps"] if many else []
        return "\n".join([table(head, [r.cells() for r in found], _whole(found)), *told])

    def __repr__(self) -> str:
        """What it is of."""
        return f"<Health of {len({row.name for row in self.rows})} parameters>"

    def _repr_html_(self) -> str:
        """The table, for notebooks."""
        return f"<pre>{html.escape(str(self))}</pre>"


def _is_concrete(x: Any) -> bool:
    return not isinstance(x, jax.core.Tracer | jax.ShapeDtypeStruct) and hasattr(x, "__array__")


def _number(x: float | None) -> str:
    return "unknown" if x is None else f"{x:.2e}" if x else "0"


def _reading(row: Row, norms: Sequence[float], counts: Sequence[int]) -> Reading:
    """A row as numbers; its state is yet to be told."""
    gradient, parameter, update = norms
    zeros, nans, infinities, runs = counts
    name = row.name if row.layer is None else f"{row.name}[{row.layer}]"
    ran = row.gradient and runs > 0
    return Reading(
        name,
        row.size,
        row.source,
        gradient if ran else None,
        parameter if row.parameter else None,
        update if row.update else None,
        zeros / (runs * row.size) if ran and row.size else None,
        nans,
        infinities,
        runs,
        "fine" if ran else "not run" if row.gradient else "unknown",
    )


def _judged(found: Sequence[Reading]) -> list[Reading]:
    """Tell the states, by the table at the head of this file."""
    sizes = [r.rms for r in found if r.rms is not None and math.isfinite(r.rms)]
    largest = max(sizes, default=0.0)
    usual = [
        r.parameter_norm / math.sqrt(r.size)
        for r in found
        if r.parameter_norm and r.size and math.isfinite(r.parameter_norm)
    ]
    least = float(np.median(usual)) if usual else 0.0
    return [replace(r, state=_state(r, largest, least)) for r in found]


def _state(r: Reading, largest: float, least: float) -> str:
    """The state of a reading beside the largest root mean square of all gradients.

    `least` is the root mean square that a parameter is taken to have at least.
    """
    parameter = max(r.parameter_norm or 0.0, least * math.sqrt(r.size))
    if r.nans or r.infinities or not math.isfinite(r.parameter_norm or 0.0):
        return "non-finite"
    if r.update_norm is not None and not r.update_norm < LONG * parameter and r.update_norm:
        return "exploding"
    if r.gradient_norm is None or r.rms is None:
        return r.state
    if r.update_norm is None and parameter and r.gradient_norm >= STEEP * parameter:
        return "exploding"
    if r.zeros == 1:
        return "dead"
    if r.rms < FAINT * largest or r.gradient_norm == 0:
        return "vanishing"
    return "stalled" if r.update_norm == 0 else "fine"


def _steepness(r: Reading) -> float:
    """The gradient's norm beside the parameter's; what is not a number comes first."""
    if r.gradient_norm is None or r.parameter_norm is None:
        return r.update_norm or 0.0
    if not math.isfinite(r.gradient_norm):
        return math.inf
    return r.gradient_norm / r.parameter_norm if r.parameter_norm else r.gradient_norm


def _norm(norms: Iterable[float | None]) -> float | None:
    """The norm of all together; None where one is unknown."""
    known = list(norms)
    return None if None in known else math.hypot(*known)  # type: ignore[arg-type]


def _together(name: str, found: Sequence[Reading]) -> Reading:
    """Readings of the parts of one parameter as one."""
    size = sum(r.size for r in found)
    zeros = [r.zeros * r.size for r in found if r.zeros is not None]
    return Reading(
        name,
        size,
        found[0].source,
        _norm(r.gradient_norm for r in found),
        _norm(r.parameter_norm for r in found),
        _norm(r.update_norm for r in found),
        sum(zeros) / size if zeros and size else None,
        sum(r.nans for r in found),
        sum(r.infinities for r in found),
        found[0].runs,
        min((r.state for r in found), key=STATES.index),
    )


def _whole(found: Sequence[Reading]) -> list[tuple[str, ...]]:
    """The last row: all parameters together, where all are known."""
    if any(r.gradient_norm is None or r.parameter_norm is None for r in found):
        return []
    whole = _together("all", found)
    return [(*whole.cells()[:-1], "")]


def with_health(program: Program, names: Mapping[str, str]) -> Program:
    """Return the program with a `Health` beside its result; `names` rename parameters."""
    leaves = jax.tree_util.tree_leaves_with_path(program.out_shapes)
    found = measured(program.graph, [jax.tree_util.keystr(path) for path, _ in leaves])
    norms, counts = (
        jax.ShapeDtypeStruct(v.shape, v.dtype) for v in found.graph.outputs[len(leaves) :]
    )
    rows = tuple(replace(row, name=names.get(row.name, row.name)) for row in found.rows)
    out = (program.out_shapes, Health(norms, counts, rows))
    return replace(program, graph=found.graph, out_shapes=out)
