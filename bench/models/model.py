"""What a model is, and how a JAX user would save memory in it by hand."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
from jax import Array

Params = Any
Batch = Any


@dataclass(frozen=True)
class Model:
    """A training loss: `loss(init(key), batch(key))` is a scalar in nats or squared units.

    `settings` are what another framework's version has to know besides the parameters. `portable`
    makes of a batch one that needs no random numbers of JAX.
    """

    name: str
    init: Callable[[Array], Params]
    loss: Callable[[Params, Batch], Array]
    batch: Callable[[Array], Batch]
    settings: Mapping[str, Any] = field(default_factory=dict)
    portable: Callable[[Batch], Batch] = lambda batch: batch

    def shapes(self) -> tuple[Params, Batch]:
        """Return parameters and a batch as `jax.ShapeDtypeStruct`s: nothing is drawn."""
        key = jax.eval_shape(lambda: jax.random.key(0))
        return jax.eval_shape(self.init, key), jax.eval_shape(self.batch, key)


@dataclass(frozen=True)
class Remat:
    """How a JAX user saves memory by hand: `wrap`, such as `jax.checkpoint`, around `group` blocks.

    `nested` wraps each block of a group as well.
    """

    wrap: Callable[[Any], Any] = lambda f: f
    group: int = 1
    nested: bool = False

    def chain(
        self, blocks: Sequence[Callable[[Any, Any], Any]], params: Sequence[Any], x: Any
    ) -> Any:
        """Run `x = block(p, x)` for all blocks."""
        pairs = list(zip(blocks, params, strict=True))
        for i in range(0, len(pairs), self.group):
            part = pairs[i : i + self.group]
            inner = [self.wrap(block) if self.nested else block for block, _ in part]

            def run(params: Any, x: Any, inner: Any = inner) -> Any:
                for block, p in zip(inner, params, strict=True):
                    x = block(p, x)
                return x

            x = self.wrap(run)([p for _, p in part], x)
        return x


PLAIN = Remat()
