"""What is asked of a program: a loss, what to differentiate it by, and in which way.

loss(x) = sum over the outputs of their elements, each with a weight of its own
order 2: of the squared length of the gradient, which is differentiated in its turn
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import backpass as bp
from fuzz.programs import PREAMBLE, Program, definition, literal

LOSS = '''\
def total(outs):
    """Each element with a weight of its own; an imaginary part with another."""
    parts = []
    for x in map(jnp.ravel, outs):
        weights = np.cos(1.0 + np.arange(x.size))
        if jnp.iscomplexobj(x):
            parts += [jnp.vdot(weights, x.real), jnp.vdot(weights[::-1], x.imag)]
        else:
            parts.append(jnp.vdot(weights, x.astype(float)))
    return sum(parts)


def squared(tree):
    return sum(jnp.sum((x * x.conj()).real.astype(float)) for x in jax.tree.leaves(tree))
'''
_SCOPE: dict[str, Any] = {"jax": jax, "jnp": jnp, "np": np}
exec(LOSS, _SCOPE)
total, squared = _SCOPE["total"], _SCOPE["squared"]

Gradient = Callable[..., Callable[..., Any]]


@dataclass(frozen=True, eq=False)
class Question:
    """A program, and how it is differentiated.

    `exact`: float64 and smooth by construction, so that finite differences tell the truth.
    """

    seed: int
    program: Program
    wrt: tuple[int, ...]
    aux: tuple[int, ...] = ()
    order: int = 1
    exact: bool = True

    @property
    def argnums(self) -> int | tuple[int, ...]:
        """One number where there is one input to differentiate by."""
        return self.wrt[0] if len(self.wrt) == 1 else self.wrt

    def loss(self, gradient: Gradient = jax.grad) -> Callable[..., Any]:
        """The function to differentiate; `gradient` serves the inner one where order is 2."""
        f, aux = self.program.function, self.aux

        def first(*xs: Any) -> Any:
            outs = f(*xs)
            value = total([x for i, x in enumerate(outs) if i not in aux])
            return (value, tuple(outs[i] for i in aux)) if aux else value

        def second(*xs: Any) -> Any:
            found = gradient(first, self.argnums, has_aux=bool(aux))(*xs)
            return (squared(found[0]), found[1]) if aux else squared(found)

        return second if self.order == 2 else first

    def snippet(self) -> str:
        """A Python file that shows both gradients."""
        args = "".join(f"    {literal(x)},\n" for x in self.program.inputs)
        has_aux = ", has_aux=True" if self.aux else ""
        kept = f"[x for i, x in enumerate(outs) if i not in {self.aux}]" if self.aux else "outs"
        value = f"total({kept})"
        result = f"({value}, tuple(outs[i] for i in {self.aux}))" if self.aux else value
        lines = [
            f"# seed {self.seed}",
            PREAMBLE + "import backpass as bp\n",
            'jax.config.update("jax_enable_x64", True)\n\n',
            "\n".join(definition(self.program, "f")) + "\n\n",
            LOSS,
            f"\ndef loss(*xs):\n    outs = f(*xs)\n    return {result}\n\n",
            f"args = (\n{args})",
        ]
        for name in ("jax", "bp"):
            asked = f"{name}.grad(loss, {self.argnums}{has_aux})"
            if self.order == 2:
                found = "found[0]" if self.aux else "found"
                more = ", found[1]" if self.aux else ""
                inner = (
                    f"def again(*xs):\n    found = {asked}(*xs)\n"
                    f"    return squared({found}){more}\n\n"
                )
                lines.append(inner)
                asked = f"{name}.grad(again, {self.argnums}{has_aux})"
            lines.append(f'print("{name}", {asked}(*args))')
        return "\n".join(lines)


def asked(question: Question, by: Any = bp) -> Callable[..., Any]:
    """`value_and_grad` of a question, by `bp` or by `jax`."""
    loss = question.loss(by.grad)
    return by.value_and_grad(loss, question.argnums, has_aux=bool(question.aux))
