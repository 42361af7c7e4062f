"""Random programs of repeated blocks, some of which are broken somewhere."""

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

B, D = 2, 3
UNARY = (jnp.sin, jnp.tanh, jnp.abs, lambda x: x - x.mean(-1, keepdims=True), lambda x: x[:, ::-1])
BINARY = (
    jnp.add,
    jnp.multiply,
    jnp.maximum,
    lambda x, y: x @ jnp.tanh(y).T @ y / D,
    lambda x, y: jnp.concatenate([x[:, :1], y[:, 1:]], -1),
)


@dataclass(frozen=True)
class Repeated:
    """`blocks` times the same `steps` on a state of `carried` arrays; see `loss`.

    A step is an op and two operands, numbers in the pool of all that the block knows. `out` are the
    numbers of the next state, `seen` those of what is collected. Block `broken` has a step more.
    """

    blocks: int
    carried: int
    steps: tuple[tuple[int, int, int], ...]
    out: tuple[int, ...]
    seen: tuple[int, ...]
    broken: int
    upfront: bool

    def loss(self, params: Any, x: Any) -> Any:
        """A number that hangs on all states and on what is collected."""
        state = [jnp.sin(x + i) for i in range(self.carried)]
        stack, listed, key = params["stack"], params["listed"], jax.random.key(7)
        slices = [stack[i] for i in range(self.blocks)] if self.upfront else None
        collected = []
        for i in range(self.blocks):
            mine = jax.random.fold_in(key, i)
            sliced = slices[i] if slices else stack[i]
            pool = [*state, x, listed[i], listed[i // 2], sliced, jnp.full((B, D), 0.1 * i)]
            pool.append(jax.random.uniform(mine, (B, D)))
            for op, one, other in self.steps:
                pool.append(_applied(op, pool[one % len(pool)], pool[other % len(pool)]))
            if i == self.broken:
                pool.append(jnp.cos(pool[-1]))
            state = [jnp.tanh(pool[at % len(pool)]) for at in self.out]
            collected += [pool[at % len(pool)] for at in self.seen]
        total = sum((v**2).mean() for v in state)
        return total + sum((v * (1 + i)).mean() for i, v in enumerate(collected))


def _applied(op: int, x: Any, y: Any) -> Any:
    ops: tuple[Callable[..., Any], ...] = (*UNARY, *BINARY)
    f = ops[op % len(ops)]
    return f(x) if f in UNARY else f(x, y)


def repeated(seed: int) -> Repeated:
    """Draw a program."""
    rng = random.Random(seed)
    many = rng.randrange(1, 4)
    count = rng.randrange(1, 7)
    room = many + 6

    def numbers(n: int) -> tuple[int, ...]:
        return tuple(rng.randrange(room + count) for _ in range(n))

    steps = tuple((rng.randrange(10), *numbers(2)) for _ in range(count))
    out = (room + count - 1, *numbers(many - 1))
    blocks = rng.randrange(3, 8)
    broken = rng.randrange(blocks) if rng.random() < 0.3 else -1
    seen = numbers(rng.choice([0, 0, 1, 2]))
    return Repeated(blocks, many, steps, out, seen, broken, rng.random() < 0.5)


def arguments(program: Repeated) -> tuple[Any, Any]:
    """Parameters and input."""
    keys = jax.random.split(jax.random.key(1), program.blocks + 2)
    listed = [jax.random.normal(key, (B, D)) for key in keys[2:]]
    stack = jax.random.normal(keys[0], (program.blocks, B, D))
    return {"stack": stack, "listed": listed}, jax.random.normal(keys[1], (B, D))
