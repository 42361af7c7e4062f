"""`Function`: an operation with a backward pass of the user's own."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp

from ..ir.errors import AutogradError
from ..ir.types import is_inexact
from .anomaly import trace_of
from .modes import mode, no_grad
from .node import Edge, Node, SavedInput
from .tensor import Tensor


class Context:
    """What `forward` leaves for `backward`; any attribute may be set on it."""

    needs_input_grad: tuple[bool, ...] = ()

    def __init__(self) -> None:
        """Nothing yet."""
        self._to_save: tuple[Tensor | None, ...] = ()
        self._dirty: tuple[Tensor, ...] = ()
        self._flat: tuple[Tensor, ...] = ()
        self._materialize = True
        self._node: FunctionNode | None = None

    def save_for_backward(self, *tensors: Tensor | None) -> None:
        """Keep inputs and outputs for `backward`, which reads `saved_tensors`."""
        self._to_save = tensors

    @property
    def saved_tensors(self) -> tuple[Tensor | None, ...]:
        """What was saved. Raises `AutogradError` when it is gone or has been changed."""
        if self._node is None:
            return self._to_save
        return self._node.unpacked()

    def mark_dirty(self, *tensors: Tensor) -> None:
        """These inputs are changed in place, and returned."""
        self._dirty = tensors

    def mark_non_differentiable(self, *tensors: Tensor) -> None:
        """These outputs have no gradient."""
        self._flat = tensors

    def set_materialize_grads(self, value: bool) -> None:
        """False: cotangents that are zero come to `backward` as None."""
        self._materialize = value


class FunctionNode(Node):
    """A call of a `Function`."""

    __slots__ = ("context", "function", "inputs", "own", "saved", "types")

    def __init__(
        self, function: type[Function], edges: Sequence[Edge | None], context: Context
    ) -> None:
        """`inputs` are set by the one who records."""
        super().__init__(edges)
        self.function, self.context = function, context
        self.types: list[Any] = []
        self.inputs = 0  # arguments of forward
        self.own: tuple[bool, ...] = ()  # which of the arguments are tensors
        self.saved: tuple[Any, ...] | None = ()

    @property
    def count(self) -> int:  # type: ignore[override]
        """Outputs that take cotangents."""
        return len(self.types)

    def name(self) -> str:
        """As PyTorch names it."""
        return f"{self.function.__name__}Backward"

    def unpacked(self) -> tuple[Tensor | None, ...]:
        """What was saved, each with its history."""
        if self.saved is None:
            raise AutogradError(
                f"backward of {self.function.__name__} a second time: what it saved was freed by "
                "the first\n  pass retain_graph=True to the first backward, or compute the loss "
                "again"
            )
        found: list[Tensor | None] = []
        for each in self.saved:
            if isinstance(each, SavedInput):
                if each.storage.version != each.version:
                    raise AutogradError(
                        f"a tensor that {self.function.__name__} saved was changed in place: "
                        f"{each.array.dtype}{list(each.array.shape)} is at version "
                        f"{each.storage.version}, expected version {each.version}"
                    )
                found.append(each.restored(self))
            else:
                found.append(each)
        return tuple(found)

    def pull(self, cts: Sequence[Any]) -> Sequence[Any]:
        """Call the user's backward."""
        given = [None if ct is None else Tensor(ct) for ct in cts]
        return [None if x is None else x.value for x in self.pull_recorded(given)]

    def pull_recorded(self, cts: Sequence[Any]) -> Sequence[Any]:
        """Call the user's backward, recorded if the mode says so."""
        context = self.context
        given = [
            Tensor(jnp.zeros(*kind)) if ct is None and kind and context._materialize else ct
            for ct, kind in zip(cts, self.types, strict=True)
        ]
        found = self.function.backward(context, *given)
        many = list(found) if isinstance(found, tuple | list) else [found]
        name = self.function.__name__
        while len(many) > self.inputs and many[-1] is None:
            many.pop()
        if len(many) != self.inputs:
            raise AutogradError(
                f"{name}.backward returned {len(many)} gradients, expected {self.inputs}, one for "
                "each argument of forward (None where there is none)"
            )
        kept = [g for g, own in zip(many, self.own, strict=True) if own]
        if any(g is not None for g, own in zip(many, self.own, strict=True) if not own):
            raise AutogradError(
                f"{name}.backward returned a gradient for an argument of forward that is no "
                "tensor\n  return None in its place"
            )
        return [g if g is None or isinstance(g, Tensor) else Tensor(jnp.asarray(g)) for g in kept]

    def release(self) -> None:
        """Give up what was saved."""
        if self.saved:
            self.saved = None


class Function:
    """Base of operations with their own backward: static methods `forward` and `backward`.

        class Exp(Function):
            @staticmethod
            def forward(ctx, x):
                y = x.exp()
                ctx.save_for_backward(y)
                return y

            @staticmethod
            def backward(ctx, ct):
                (y,) = ctx.saved_tensors
                return ct * y

    `Exp.apply(x)`. With a static method `setup_context(ctx, inputs, output)`, `forward` takes no
    context.
    """

    @staticmethod
    def forward(*args: Any) -> Any:
        """Compute the outputs; nothing is recorded within."""
        raise NotImplementedError("a Function wants a static method forward")

    @staticmethod
    def backward(ctx: Any, *cts: Any) -> Any:
        """Give a gradient for each argument of forward, from those of the outputs."""
        raise NotImplementedError("a Function wants a static method backward to be differentiated")

    @classmethod
    def apply(cls, *args: Any) -> Any:
        """Run the operation and record it."""
        context = Context()
        needs = tuple(isinstance(x, Tensor) and x._requires for x in args)
        context.needs_input_grad = needs
        setup = getattr(cls, "setup_context", None)
        recording = mode.grad and any(needs)
        with no_grad():
            out = cls.forward(*args) if setup else cls.forward(context, *args)
            if setup:
                setup(context, args, out)
        many = out if isinstance(out, tuple) else (out,)
        if not recording:
            return out
        own = tuple(isinstance(x, Tensor) for x in args)
        edges = [x._edge() if need else None for x, need in zip(args, needs, strict=True)]
        edges = [edge for edge, is_tensor in zip(edges, own, strict=True) if is_tensor]
        node = FunctionNode(cls, edges, context)
        node.trace = trace_of()
        node.inputs, node.own = len(args), own
        results = []
        for k, x in enumerate(many):
            node.types.append((x.shape, x.dtype) if isinstance(x, Tensor) else None)
            if isinstance(x, Tensor) and is_inexact(x.dtype) and not _among(x, context._flat):
                if _among(x, context._dirty):
                    x._check_changeable()
                elif _among(x, args):
                    x = x.detach()
                x._node, x._index, x._requires = node, k, True
            results.append(x)
        node.saved = tuple(_saved(x, args, many, results) for x in context._to_save)
        context._to_save = ()
        context._node = node
        return tuple(results) if isinstance(out, tuple) else results[0]


def _among(x: Any, many: Sequence[Any]) -> bool:
    return any(x is y for y in many)


def _saved(x: Any, args: Sequence[Any], many: Sequence[Any], results: Sequence[Any]) -> Any:
    if x is None:
        return None
    if not isinstance(x, Tensor):
        raise TypeError(f"save_for_backward wants tensors or None, got {type(x).__name__}")
    if x._inference:
        raise AutogradError("a tensor that was made in inference_mode can't be saved for backward")
    for old, new in zip(many, results, strict=True):
        if x is old and isinstance(new, Tensor) and new._node is not None:
            return SavedInput(new.value, new._storage, None, new._index)
    return SavedInput(x.value, x._storage, x._edge())


def once_differentiable(fun: Callable[..., Any]) -> Callable[..., Any]:
    """Mark a `backward` that can't be differentiated: doing so is an error."""

    @functools.wraps(fun)
    def backward(ctx: Any, *cts: Any) -> Any:
        recording = mode.grad
        with no_grad():
            found = fun(ctx, *cts)
        if not recording:
            return found
        if isinstance(found, tuple):
            return tuple(map(_refusing, found))
        return _refusing(found)

    return backward


class _RefusingNode(Node):
    """Behind the gradients of a function that is once differentiable."""

    __slots__ = ()

    def name(self) -> str:
        return "once_differentiable"

    def pull(self, cts: Sequence[Any]) -> Sequence[Any]:
        raise AutogradError(
            "a backward marked once_differentiable can't be differentiated a second time"
        )

    pull_recorded = pull


def _refusing(x: Any) -> Any:
    return Tensor._of(x.value, _RefusingNode([]), 0) if isinstance(x, Tensor) else x
