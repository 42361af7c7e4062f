"""The graph that a program leaves behind as it runs: what `backward` walks.

    Node       one recorded operation: its rule, what it saved, edges to what it was computed from
    Edge       (Node, k): output k of a node; (Tensor, 0): a leaf, whose `.grad` is summed into

Nodes are numbered as they are made, so that falling numbers are an order to walk in. A node refers
to what came before it and never to its own outputs: dropping the last tensor drops the graph.
"""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from ..ir.errors import AutogradError
from .modes import mode, no_grad
from .rule import Rule
from .storage import Storage

if TYPE_CHECKING:
    from .tensor import Tensor

numbers = itertools.count()
Edge = tuple[Any, int]
_NOBODYS = Storage(None)


class Handle:
    """What registering a hook returns: `remove()` takes it away again."""

    __slots__ = ("_hook", "_hooks")

    def __init__(self, hooks: list[Any], hook: Any) -> None:
        """Adds the hook."""
        hooks.append(hook)
        self._hooks, self._hook = hooks, hook

    def remove(self) -> None:
        """Take the hook away; again does nothing."""
        self._hooks[:] = [hook for hook in self._hooks if hook is not self._hook]

    def __enter__(self) -> Handle:
        """Removed at the end."""
        return self

    def __exit__(self, *_: object) -> None:
        """Remove."""
        self.remove()


class Hooks:
    """The hooks of a node. `tensor[k]` see the cotangent of output k; `retained` are tensors."""

    __slots__ = ("after", "before", "retained", "tensor")

    def __init__(self) -> None:
        """None yet."""
        self.before: list[Callable[..., Any]] = []
        self.after: list[Callable[..., Any]] = []
        self.tensor: dict[int, list[Callable[..., Any]]] = {}
        self.retained: dict[int, weakref.ref[Tensor]] = {}


class Node:
    """A recorded operation. Subclasses tell how cotangents pass it.

    `edges` has one entry for each active input, None where that does not require grad.
    """

    __slots__ = ("__weakref__", "edges", "hooks", "number", "trace")

    count = 1  # outputs that take cotangents
    trace: Any

    def __init__(self, edges: Sequence[Edge | None]) -> None:
        """Numbered as the latest."""
        self.edges = edges
        self.number = next(numbers)
        self.hooks: Hooks | None = None
        self.trace = None

    def name(self) -> str:
        """Name of the operation, as in PyTorch's `grad_fn.name()`."""
        raise NotImplementedError

    def pull(self, cts: Sequence[Any]) -> Sequence[Any]:
        """Cotangents (arrays or None) of the active inputs, from those of the outputs."""
        raise NotImplementedError

    def pull_recorded(self, cts: Sequence[Any]) -> Sequence[Any]:
        """The same on tensors, recorded, for derivatives of higher order."""
        raise NotImplementedError

    def release(self) -> None:
        """Give up what was saved."""

    @property
    def next_functions(self) -> tuple[tuple[Any, int], ...]:
        """The nodes that cotangents go to next, and which of their outputs; leaves accumulate."""
        return tuple(
            (None, 0)
            if edge is None
            else (edge[0], edge[1])
            if isinstance(edge[0], Node)
            else (AccumulateGrad(edge[0]), 0)
            for edge in self.edges
        )

    def hooked(self) -> Hooks:
        """The hooks of this node, to add to."""
        if self.hooks is None:
            self.hooks = Hooks()
        return self.hooks

    def register_prehook(self, hook: Callable[..., Any]) -> Handle:
        """Call `hook(grad_outputs)` before this node; it may return others."""
        return Handle(self.hooked().before, hook)

    def register_hook(self, hook: Callable[..., Any]) -> Handle:
        """Call `hook(grad_inputs, grad_outputs)` after this node; it may return others."""
        return Handle(self.hooked().after, hook)

    def __repr__(self) -> str:
        """Name and number."""
        return f"<{self.name()} {self.number}>"


class AccumulateGrad:
    """Stands for a leaf among `next_functions`; `variable` is the leaf."""

    def __init__(self, variable: Tensor) -> None:
        """Made when asked for."""
        self.variable = variable
        self.next_functions = ()

    def name(self) -> str:
        """As PyTorch calls it."""
        return "AccumulateGrad"


class SavedInput:
    """An array that backward will read, and the version that its storage had.

    `output` is its number among the node's own outputs; of an input, `edge` is its history. What no
    tensor holds has no storage that could change.
    """

    __slots__ = ("edge", "held", "output", "storage", "unpack", "version")

    def __init__(
        self,
        array: Any,
        storage: Storage = _NOBODYS,
        edge: Edge | None = None,
        output: int | None = None,
    ) -> None:
        """Noted when the operation runs."""
        self.held = array
        self.unpack: Callable[..., Any] | None = None
        self.storage = storage
        self.version = storage.version
        self.edge, self.output = edge, output
        if mode.packing and isinstance(array, jax.Array):
            from .tensor import Tensor

            pack, self.unpack = mode.packing[-1]
            with no_grad():
                self.held = pack(Tensor(array))

    @property
    def array(self) -> Any:
        """The array; unpacked, where the user packed it."""
        return self.held if self.unpack is None else self.unpack(self.held).value

    def restored(self, node: Node) -> Tensor:
        """The tensor with the history that it had; `node` saved it."""
        if self.output is not None:
            return _restored(self.array, (node, self.output))  # type: ignore[no-any-return]
        return _restored(self.array, self.edge)  # type: ignore[no-any-return]


class OpNode(Node):
    """An operation by its `Rule`.

    `saved` are the inputs and outputs that backward reads, then hidden results; `whole` are all
    inputs, where there are hidden results, for derivatives of higher order.
    """

    __slots__ = ("replay", "results", "rule", "saved", "whole")

    def __init__(self, rule: Rule, edges: Sequence[Edge | None]) -> None:
        """What it saves is set by the one who records."""
        super().__init__(edges)
        self.rule = rule
        self.saved: tuple[SavedInput, ...] | None = None
        self.whole: tuple[SavedInput, ...] = ()
        self.replay: Sequence[Any] = ()  # in a compiled step: all operands, and the results
        self.results: Sequence[weakref.ref[Tensor]] = ()

    @property
    def count(self) -> int:  # type: ignore[override]
        """Outputs that take cotangents."""
        return len(self.rule.seeded)

    def name(self) -> str:
        """`sin_backward` for `sin`."""
        return f"{self.rule.name}_backward"

    def checked(self) -> tuple[SavedInput, ...]:
        """What was saved. Raises `AutogradError` when it is gone or has been changed."""
        if self.saved is None:
            if not self.rule.reads:
                return ()
            raise AutogradError(
                f"backward of {self.rule.name} a second time: what it saved was freed by the "
                "first\n  pass retain_graph=True to the first backward, or compute the loss again"
            )
        for x in self.saved:
            if x.storage.version != x.version:
                raise self._modified(x)
        return self.saved

    def arrays(self) -> list[Any]:
        """What backward reads."""
        return [x.array for x in self.checked()]

    def pull(self, cts: Sequence[Any]) -> Sequence[Any]:
        """One program."""
        return self.rule.run(self.arrays(), cts)  # type: ignore[no-any-return]

    def pull_recorded(self, cts: Sequence[Any]) -> Sequence[Any]:
        """Backward as an operation on what was saved, each with its history."""
        from .lift import apply
        from .tensor import Tensor

        rule, saved = self.rule, self.checked()
        given = [
            Tensor(jnp.zeros(kind.shape, kind.dtype)) if ct is None else ct
            for ct, kind in zip(cts, rule.types, strict=True)
        ]
        if rule.hidden:
            xs = [x.restored(self) for x in self.whole]
            return apply(rule.from_inputs, (*xs, *given))  # type: ignore[no-any-return]
        return apply(rule.function, (*(x.restored(self) for x in saved), *given))  # type: ignore[no-any-return]

    def release(self) -> None:
        """Give up what was saved."""
        self.saved, self.whole = None, ()

    def _modified(self, x: SavedInput) -> AutogradError:
        role = "an output" if x.output is not None else "an input"
        array = x.storage.array
        return AutogradError(
            f"a tensor that backward of {self.rule.name} needs was changed in place: {role} of "
            f"{array.dtype}{list(array.shape)} is at version {x.storage.version}, expected "
            f"version {x.version}\n"
            "  use the operation's form that returns a new tensor, or change a .clone()"
        )


def _restored(array: Any, edge: Edge | None) -> Any:
    """A tensor with the value and the history that it had."""
    from .tensor import Tensor

    if not isinstance(array, jax.Array) or edge is None:
        return Tensor(array)
    source, k = edge
    if not isinstance(source, Node):
        return source  # a leaf is itself
    return Tensor._of(array, source, k)
