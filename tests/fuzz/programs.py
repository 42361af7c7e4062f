"""A random program as data, and as the Python that it stands for.

A program is a list of steps, each one line of Python over values by number:

    Step("lax.sin($0)", (3,))                           v4 = lax.sin(v3)
    Step("lax.cond($0, $f0, $f1, $1)", (2, 4), 1, ...)   def f5_0(w0): ...; v5 = lax.cond(v2, ...)

It is run by executing its text, so what a failure prints is what failed.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

NAMES = "vwxyzuts"  # a letter for each depth of nested functions

PREAMBLE = """\
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.ad_checkpoint import checkpoint_name

from backpass.ir.jax_compat import bind
"""


@dataclass(frozen=True, eq=False)
class Step:
    """`outs` values from `expr`; `$0` is the first of `args`, `$f0` the first of `bodies`."""

    expr: str
    args: tuple[int, ...]
    outs: int = 1
    bodies: tuple["Program", ...] = ()


@dataclass(frozen=True, eq=False)
class Program:
    """Inputs are numbered first, then each step's outputs; a body's inputs are but examples."""

    inputs: tuple[Any, ...]
    steps: tuple[Step, ...]
    outputs: tuple[int, ...]

    @cached_property
    def starts(self) -> tuple[int, ...]:
        """Number of each step's first output, and the count of all values at the end."""
        at = [len(self.inputs)]
        for step in self.steps:
            at.append(at[-1] + step.outs)
        return tuple(at)

    @property
    def function(self) -> Callable[..., Any]:
        """The program as a function of its inputs that returns a tuple."""
        return compiled(PREAMBLE + "\n".join(definition(self, "f")))["f"]

    def walk(self) -> Iterator[Step]:
        """All steps, those of bodies too."""
        for step in self.steps:
            yield step
            for body in step.bodies:
                yield from body.walk()

    def live(self) -> "Program":
        """Without the steps that no output needs."""
        needed, kept = set(self.outputs), []
        for step, at in reversed(list(zip(self.steps, self.starts, strict=False))):
            if not needed.isdisjoint(range(at, at + step.outs)):
                needed.update(step.args)
                kept.append((step, at))
        number = {i: i for i in range(len(self.inputs))}
        steps = []
        for step, at in reversed(kept):
            steps.append(replace(step, args=tuple(number[i] for i in step.args)))
            for k in range(step.outs):
                number[at + k] = len(number)
        return Program(self.inputs, tuple(steps), tuple(number[i] for i in self.outputs))


def compiled(text: str) -> dict[str, Any]:
    """Names that a text defines; a new namespace each time."""
    scope: dict[str, Any] = {}
    exec(compile(text, "<program>", "exec"), scope)  # noqa: S102
    return scope


def definition(program: Program, name: str, depth: int = 0) -> list[str]:
    """Lines of `def name(...)`."""
    letter = NAMES[depth]
    names = [f"{letter}{i}" for i in range(program.starts[-1])]
    lines = [f"def {name}({', '.join(names[: len(program.inputs)])}):"]
    for step, at in zip(program.steps, program.starts, strict=False):
        bodies = [f"f{letter}{at}_{k}" for k in range(len(step.bodies))]
        for body, called in zip(step.bodies, bodies, strict=True):
            lines += ["    " + line for line in definition(body, called, depth + 1)]
        given = [names[i] for i in step.args]
        targets = ", ".join(names[at : at + step.outs]) + ("," if step.outs == 1 else "")
        targets = targets[:-1] if step.outs == 1 else targets
        lines.append(f"    {targets} = {expression(step, given, bodies)}")
    outputs = ", ".join(names[i] for i in program.outputs)
    lines.append(f"    return ({outputs},)")
    return lines


def expression(step: Step, names: Sequence[str], bodies: Sequence[str] = ()) -> str:
    """The step's expression with names put in."""

    def name(match: re.Match[str]) -> str:
        return (bodies if match[1] else names)[int(match[2])]

    return re.sub(r"\$(f?)(\d+)", name, step.expr)


def literal(x: Any) -> str:
    """An input as Python."""
    if not isinstance(x, np.ndarray):
        return repr(x)
    return f"jnp.array({x.tolist()!r}, np.{x.dtype.name})"
