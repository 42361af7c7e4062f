"""`debug="nan"`: a step whose result is not finite is run again, with a record of every value.

The step itself runs as it always does, and its result is looked at. Only where something in it is
NaN or infinite does the slower program run, once, on the same arguments; a third one, of the bad
node's ancestors alone, then fetches its operands. Arguments that are donated are copied first, so
that they are there for this, and for the user after the error.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..ir.errors import ArgumentError, NonFiniteError
from ..ir.graph import Graph, Literal, Value
from ..ir.types import is_inexact
from ..passes import Autodiff, Dce, Pass, run_passes
from ..passes.probe import (
    FINITE,
    Birth,
    Record,
    births,
    factors_of,
    first_of,
    lined,
    mask_of,
    recorded,
    tapped,
)
from ..runtime.lower import lowered
from ..runtime.progress import Watch
from ..runtime.xla import chosen
from .budget import Planning
from .health import Health
from .nonfinite_report import Found, described, unexplained, unlocated
from .program import Program

Recorder = tuple[Record, Callable[..., Any]]


@dataclass
class Guard:
    """Looks at what one program returns. `final` gives the graph that XLA runs for it.

    `before` are the passes that decide its dtypes.
    """

    program: Program
    before: Sequence[Pass]
    final: Callable[[], Graph]
    donated: Collection[int]
    planning: Planning
    options: dict[str, Any] | None
    _recorders: list[Recorder] = field(default_factory=list)
    _lock: Any = field(default_factory=threading.Lock, repr=False)  # one thread looks at a time

    def __call__(self, call: Callable[..., Any], args: Sequence[Any], named: Any) -> Any:
        """Run an executable and look at what it returns. Raises `NonFiniteError`."""
        leaves, tree = jax.tree.flatten((args, named))
        copies = iter(copied([leaves[i] for i in sorted(self.donated)]))
        given = [next(copies) if i in self.donated else x for i, x in enumerate(leaves)]
        positional, keywords = jax.tree.unflatten(tree, given)
        out = call(*positional, **keywords)
        self.check(not_finite(out), leaves)
        return out

    def check(self, bad: Sequence[int], leaves: Sequence[Any]) -> None:
        """Raise `NonFiniteError` if the results at the positions `bad` should not be so."""
        if not bad:
            return
        with self._lock:
            error = self._error(leaves, bad)
        if error is not None:
            raise error

    def _error(self, leaves: Sequence[Any], bad: Sequence[int]) -> NonFiniteError | None:
        """What is wrong; nothing if infinity is what the program was given, or a constant of it."""
        name = self.program.name
        watch = Watch(name, "looking for the first NaN in", "found the first NaN in")
        try:
            for record, run in self._each_recorder():
                found = births(record, [np.asarray(x) for x in run(*leaves)])
                first = first_of(found[i][1] for i in bad)
                if first is not None:
                    return self._told(first, record.graph, leaves, bad)
                if all(found[i][0] != FINITE for i in bad):
                    return None
        except Exception as failure:  # memory for the records may be short
            return _because(failure, unlocated(self.program, bad))
        finally:
            watch.stop()
        return unexplained(self.program, bad)

    def _told(
        self, birth: Birth, graph: Graph, leaves: Sequence[Any], bad: Sequence[int]
    ) -> NonFiniteError:
        """The error for a birth; without its numbers if those can't be fetched."""
        try:
            return described(self._fetched(birth, graph, leaves), self.program, bad)
        except Exception as failure:
            return _because(failure, described(Found(birth, graph, {}), self.program, bad))

    def _each_recorder(self) -> Iterator[Recorder]:
        """The program as the user wrote it, with its gradients; then what the passes made of it."""
        yield from self._recorders
        for graph in (self._plain, self.final)[len(self._recorders) :]:
            with_records, record = recorded(graph())
            self._recorders.append((record, self._compiled(with_records)))
            yield self._recorders[-1]

    @cached_property
    def _whole(self) -> Graph:
        """The program as the user wrote it, with its gradients, and with what nobody reads."""
        passes = (*self.before, Autodiff(outermost=True))
        return run_passes(lined(self.program.graph), passes)[-1].graph

    def _plain(self) -> Graph:
        if not self.planning.active:
            return self._whole
        try:
            fitting = self.planning.fitting([Dce()(self._whole)], self.donated)
        except ArgumentError:  # a plan that the user gave is one for the program after all passes
            return self.final()
        return self._whole if fitting is None else fitting.candidate.graph

    def _fetched(self, birth: Birth, graph: Graph, leaves: Sequence[Any]) -> Found:
        """The operands and results of the node in question, and of the `where` that hides them."""
        if birth.node is None:
            return Found(birth, graph, {})
        values: list[Value] = [v for v in birth.node.inputs if not isinstance(v, Literal)]
        values += birth.node.outputs
        mask = mask_of(birth.node, graph) or mask_of(birth.node, self._whole)
        if mask is not None and mask in birth.graph.nodes:
            values.append(mask.output)
        values += factors_of(birth.node, birth.graph)
        wanted = [v for v in dict.fromkeys(values) if not _is_key(v)]
        arrays = self._compiled(tapped(graph, birth.path, wanted))(*leaves)
        fetched = dict(zip(wanted, map(np.asarray, arrays), strict=True))
        return Found(birth, graph, fetched, mask)

    def _compiled(self, graph: Graph) -> Callable[..., Any]:
        options = chosen(self.options, planned=self.planning.active)
        call = lowered(graph, [value.type for value in graph.outputs])
        return jax.jit(call, compiler_options=options)


def _because(failure: Exception, error: NonFiniteError) -> NonFiniteError:
    """The error, and what kept it from saying more."""
    error.__cause__ = failure
    error.add_note(f"more could not be told: {type(failure).__name__}: {failure}")
    return error


def _is_key(value: Value) -> bool:
    return jnp.issubdtype(value.dtype, jax.dtypes.extended)


def not_finite(out: Any) -> list[int]:
    """Positions of the leaves that are not finite; a `Health`, which comes last, may tell of it."""
    leaves = jax.tree.leaves(out, is_leaf=lambda x: isinstance(x, Health))
    floats = [i for i, x in enumerate(leaves) if not isinstance(x, Health) and is_inexact(x.dtype)]
    if not floats or _all_finite([leaves[i] for i in floats]):
        return []
    return [i for i in floats if not _all_finite([leaves[i]])]


@jax.jit
def _all_finite(arrays: Sequence[Any]) -> Any:
    return jnp.stack([jnp.isfinite(x).all() for x in arrays]).all()


@jax.jit
def copied(tree: Any) -> Any:
    """The same arrays in buffers of their own."""
    return jax.tree.map(jnp.copy, tree)
