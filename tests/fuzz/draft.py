"""A program being drawn: each step is run as it is written, so that its values are known.

Numbers stay moderate and away from kinks: a form asks for a value inside a function's domain
(`within`), or for two that are apart, and what grows too large is scaled down.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from fuzz.interpret import run_jaxpr
from fuzz.programs import PREAMBLE, Program, Step, compiled, definition

LARGEST = 24  # elements
BOUND = 6.0
GAP = 0.02  # between values that an extremum or a sort compares

Test = Callable[[Any], bool]
_SCOPE = compiled(PREAMBLE)


class Rejected(Exception):
    """A form does not fit the values at hand."""


class Draft:
    """Values and steps so far. `exact`: float64 and smooth; `depth`: of nested functions."""

    def __init__(
        self, rng: np.random.Generator, inputs: Sequence[Any], exact: bool, depth: int = 0
    ) -> None:
        self.rng, self.exact, self.depth = rng, exact, depth
        self.inputs = tuple(inputs)
        self.values: list[np.ndarray] = [np.asarray(x) for x in inputs]
        self.used: list[int] = [0] * len(inputs)
        self.steps: list[Step] = []

    # Choices

    def one_of(self, *choices: Any) -> Any:
        """One of several, all alike likely."""
        return choices[self.rng.integers(len(choices))]

    def chance(self, p: float) -> bool:
        """True with probability p."""
        return bool(self.rng.random() < p)

    def integer(self, low: int, high: int) -> int:
        """Between low and high, both included."""
        return int(self.rng.integers(low, high + 1))

    def number(self, low: float = -2.0, high: float = 2.0) -> float:
        """A number of two digits, never 0."""
        return round(float(self.rng.uniform(low, high)), 2) or 0.5

    # Values

    def pick(self, test: Test) -> int:
        """A value that passes; one that nothing reads yet is more likely."""
        fit = [i for i, x in enumerate(self.values) if test(x)]
        if not fit:
            raise Rejected
        weights = np.array([4.0 if not self.used[i] else 1.0 for i in fit])
        return int(self.rng.choice(fit, p=weights / weights.sum()))

    def real(self, test: Test = lambda x: True) -> int:
        """A floating value that passes."""
        return self.pick(lambda x: x.dtype.kind == "f" and test(x))

    def like(self, i: int) -> int:
        """A value of the type of value i; maybe i itself."""
        x = self.values[i]
        return self.pick(lambda y: y.shape == x.shape and y.dtype == x.dtype)

    def within(self, i: int, low: float, high: float) -> int:
        """The value i, moved into an interval unless it lies there."""
        x = self.values[i]
        if self.depth == 0 and x.size and low <= x.min() and x.max() <= high:
            return i
        return self.emit(f"{low} + {round(high - low, 3)} * lax.logistic($0)", i)

    def apart(self, x: np.ndarray, y: Any) -> None:
        """Reject values that come close to each other where a kink would be."""
        if self.exact and np.any(np.abs(x - y) < GAP):
            raise Rejected

    def distinct(self, i: int, axis: int | None = None) -> int:
        """The value i, if no two elements along an axis (all when None) are close."""
        x = self.values[i]
        if self.exact:
            line = np.sort(x, axis=axis)
            if np.any(np.diff(line, axis=-1 if axis is None else axis) < GAP):
                raise Rejected
        return i

    # Steps

    def emit(self, expr: str, *args: int, outs: int = 1, bodies: Sequence[Program] = ()) -> int:
        """Append a step, run it, and give its first output's number."""
        step = Step(expr, args, outs, tuple(bodies))
        found = self._run(step)
        if len(found) != outs:
            raise Rejected
        for x in found:
            if x.ndim > 4 or x.size > LARGEST or not np.all(np.isfinite(x.astype(complex))):
                raise Rejected
        first = len(self.values)
        self.steps.append(step)
        self.values += found
        self.used += [0] * outs
        for i in args:
            self.used[i] += 1
        if outs == 1 and found[0].dtype.kind in "fc" and found[0].size:
            largest = float(np.abs(found[0]).max())
            if largest > 1e6:
                raise Rejected
            if largest > BOUND:
                return self.emit(f"$0 * {float(f'{BOUND / 2 / largest:.1g}')}", first)
        return first

    def _run(self, step: Step) -> list[np.ndarray]:
        given = [self.values[i] for i in step.args]
        whole = Program(
            tuple(given),
            (Step(step.expr, tuple(range(len(given))), step.outs, step.bodies),),
            tuple(range(len(given), len(given) + step.outs)),
        )
        text = "\n".join(definition(whole, "f"))
        scope = dict(_SCOPE)
        exec(compile(text, "<step>", "exec"), scope)
        try:
            jaxpr = jax.make_jaxpr(scope["f"])(*given)
            return [np.asarray(x) for x in run_jaxpr(jaxpr, *given)]
        except (TypeError, ValueError, NotImplementedError) as error:
            raise Refused(text, error) from error

    def attempt(self, form: Callable[["Draft"], Any]) -> bool:
        """Apply a form, or leave everything as it was."""
        before = len(self.steps), len(self.values), list(self.used)
        try:
            form(self)
        except Rejected:
            del self.steps[before[0] :], self.values[before[1] :]
            self.used = before[2]
            return False
        return True

    def program(self, outputs: Sequence[int]) -> Program:
        """What is needed for some values."""
        return Program(self.inputs, tuple(self.steps), tuple(outputs)).live()


class Refused(Rejected):
    """JAX refuses a step; a form that is refused often is a bug of the form."""
