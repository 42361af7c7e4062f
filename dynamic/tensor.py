"""`Tensor`: an array that knows where it came from.

The array lies in a `Storage`, which `detach()` and views share.
"""

from __future__ import annotations

import operator
import warnings
from collections.abc import Callable, Sequence
from functools import cache
from types import ModuleType
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from ..compiler.state import watching
from ..ir.errors import ArgumentError, AutogradError
from ..ir.types import is_complex, is_inexact
from .modes import mode, no_grad
from .node import Edge, Handle, Node
from .storage import Storage, View, meet


class Tensor:
    """An array, whether it requires grad, and the node that made it.

    `.grad` is None or a tensor of its shape; `.data` the same values without history.
    """

    __slots__ = (
        "__weakref__",
        "_after",
        "_held_grad",
        "_hooks",
        "_index",
        "_inference",
        "_node",
        "_requires",
        "_retains",
        "_storage",
        "_view",
    )

    __array_priority__ = 1000  # NumPy leaves its operators to us

    def __init__(self, array: Any) -> None:
        """A tensor without history; `dyn.tensor` is the function to use."""
        self._storage = Storage(array)
        self._view: View | None = None
        self._node: Node | None = None
        self._index = 0
        self._requires = False
        self._held_grad: Tensor | None = None
        self._hooks: list[Any] | None = None
        self._after: list[Any] | None = None
        self._retains = False
        self._inference = mode.inference

    @classmethod
    def _of(cls, array: Any, node: Node, index: int) -> Tensor:
        """Output `index` of a node."""
        new = cls(array)
        new._node, new._index, new._requires = node, index, True
        return new

    if TYPE_CHECKING:  # what `ops.py` installs

        def __getattr__(self, name: str) -> Any: ...
        def __getitem__(self, key: Any) -> Tensor: ...
        def __setitem__(self, key: Any, value: Any) -> None: ...
        def __neg__(self) -> Tensor: ...
        def __add__(self, other: Any) -> Tensor: ...
        def __radd__(self, other: Any) -> Tensor: ...
        def __sub__(self, other: Any) -> Tensor: ...
        def __rsub__(self, other: Any) -> Tensor: ...
        def __mul__(self, other: Any) -> Tensor: ...
        def __rmul__(self, other: Any) -> Tensor: ...
        def __truediv__(self, other: Any) -> Tensor: ...
        def __rtruediv__(self, other: Any) -> Tensor: ...
        def __floordiv__(self, other: Any) -> Tensor: ...
        def __mod__(self, other: Any) -> Tensor: ...
        def __matmul__(self, other: Any) -> Tensor: ...
        def __rmatmul__(self, other: Any) -> Tensor: ...
        def __pow__(self, other: Any) -> Tensor: ...
        def __rpow__(self, other: Any) -> Tensor: ...
        def __lt__(self, other: Any) -> Tensor: ...
        def __le__(self, other: Any) -> Tensor: ...
        def __gt__(self, other: Any) -> Tensor: ...
        def __ge__(self, other: Any) -> Tensor: ...

    # What it is.

    @property
    def value(self) -> Any:
        """The `jax.Array`, as it is now."""
        view = self._view
        if view is None:
            if watching.owner is not None:
                meet(self._storage)
            return self._storage.array
        if view.version != self._storage.version:
            self._refresh(view)
        return view.array

    @property
    def shape(self) -> tuple[int, ...]:
        """Sizes of its axes."""
        return tuple(self.value.shape)

    @property
    def dtype(self) -> Any:
        """NumPy's dtype."""
        return self.value.dtype

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return int(self.value.ndim)

    @property
    def device(self) -> Any:
        """Where it lies."""
        return self.value.device

    @property
    def requires_grad(self) -> bool:
        """True when operations on it are recorded."""
        return self._requires

    @requires_grad.setter
    def requires_grad(self, on: bool) -> None:
        if self._node is not None:
            if not on:
                raise AutogradError(
                    "requires_grad of a tensor that was computed can't be changed\n"
                    "  use .detach() for one without history"
                )
            return
        if on:
            _check_float(self.dtype)
        self._requires = bool(on)

    def requires_grad_(self, requires_grad: bool = True) -> Tensor:
        """Set `requires_grad`; gives the tensor itself. Raises `AutogradError` for integers."""
        self.requires_grad = requires_grad
        return self

    @property
    def is_leaf(self) -> bool:
        """True for what no recorded operation has made."""
        return self._node is None

    @property
    def _grad(self) -> Tensor | None:
        """`.grad` without a warning."""
        if watching.owner is not None:
            meet(self, "read")
        return self._held_grad

    @_grad.setter
    def _grad(self, value: Tensor | None) -> None:
        if watching.owner is not None:
            meet(self, "set")
        self._held_grad = value

    @property
    def grad_fn(self) -> Node | None:
        """The node that made it."""
        if self._view is not None:
            self.value  # noqa: B018  a view's history is renewed with its value
        return self._node

    @property
    def grad(self) -> Tensor | None:
        """What backward has summed up for this leaf."""
        if self._node is not None and not self._retains and self._grad is None:
            warnings.warn(
                "the .grad of a tensor that is no leaf is not kept; call .retain_grad() on it "
                "before backward, or read the .grad of a leaf",
                stacklevel=2,
            )
        return self._grad

    @grad.setter
    def grad(self, value: Tensor | None) -> None:
        if value is not None:
            if not isinstance(value, Tensor):
                raise TypeError(f".grad wants a tensor or None, got {type(value).__name__}")
            if value.shape != self.shape:
                raise AutogradError(
                    f".grad wants the tensor's own shape {list(self.shape)}, got "
                    f"{list(value.shape)}"
                )
        self._grad = value

    @property
    def data(self) -> Tensor:
        """The same values without history; changes of one are seen in the other."""
        return self.detach()

    @data.setter
    def data(self, value: Any) -> None:
        array = value.value if isinstance(value, Tensor) else jnp.asarray(value)
        self._storage = Storage(array)
        self._view = None

    @property
    def _version(self) -> int:
        """How often its storage was changed."""
        return self._storage.version

    def retain_grad(self) -> None:
        """Keep the gradient of a tensor that is no leaf in `.grad`."""
        if not self._requires:
            raise AutogradError("retain_grad wants a tensor that requires grad")
        if self._node is not None and not self._retains:
            import weakref

            self._retains = True
            self._node.hooked().retained[self._index] = weakref.ref(self)

    @property
    def retains_grad(self) -> bool:
        """True for one that is no leaf and whose gradient is kept."""
        return self._retains

    def detach(self) -> Tensor:
        """The same storage without history."""
        new = Tensor(self._storage.array)
        new._storage = self._storage
        if self._view is not None:
            new._view = View(self._view.base.detach(), self._view.steps, self.value)
        new._inference = self._inference
        return new

    def detach_(self) -> Tensor:
        """Drop the history; gives the tensor itself."""
        self._node, self._index, self._requires = None, 0, False
        return self

    # Leaving for Python and NumPy.

    def item(self) -> Any:
        """The value as a Python number."""
        return self.value.item()

    def tolist(self) -> Any:
        """The values as nested lists."""
        return np.asarray(self.value).tolist()

    def numpy(self) -> np.ndarray[Any, Any]:
        """The values as a NumPy array. Raises `AutogradError` for one that requires grad."""
        if self._requires and mode.grad:
            raise AutogradError(
                "a tensor that requires grad has no NumPy array: the gradient would be lost\n"
                "  write x.detach().numpy()"
            )
        return np.asarray(self.value)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Any:
        """For NumPy; see `numpy`."""
        return np.asarray(self.numpy(), dtype=dtype)

    def __len__(self) -> int:
        """Size of the first axis."""
        return len(self.value)

    def __bool__(self) -> bool:
        """Of one element."""
        return bool(self.value)

    def __int__(self) -> int:
        """Of one element."""
        return int(self.value)

    def __float__(self) -> float:
        """Of one element."""
        return float(self.value)

    def __complex__(self) -> complex:
        """Of one element."""
        return complex(self.value)

    def __index__(self) -> int:
        """Of an integer."""
        return operator.index(self.value)

    __hash__ = object.__hash__  # by identity

    def __iter__(self) -> Any:
        """Along the first axis."""
        if not self.ndim:
            raise TypeError("a tensor without axes can't be iterated over")
        return (self[i] for i in range(len(self)))

    def __repr__(self) -> str:
        """Values, dtype, and what made it."""
        text = np.array2string(np.asarray(self.value), separator=", ", prefix="tensor(")
        dtype = "" if self.dtype == np.float32 else f", dtype={self.dtype}"
        if self._node is not None:
            return f"tensor({text}{dtype}, grad_fn={self._node!r})"
        return f"tensor({text}{dtype}{', requires_grad=True' if self._requires else ''})"

    def __format__(self, spec: str) -> str:
        """One element is formatted as a number."""
        return format(self.item(), spec) if spec and not self.ndim else format(str(self), spec)

    # Backward.

    def backward(
        self,
        gradient: Any = None,
        retain_graph: bool | None = None,
        create_graph: bool = False,
        inputs: Tensor | Sequence[Tensor] | None = None,
    ) -> None:
        """Sum the gradient of this tensor into `.grad` of the leaves that it was computed from.

        Args:
            gradient: cotangent of this tensor, of its shape; 1 by default for one element.
            retain_graph: keep what was saved, for another backward; by default as `create_graph`.
            create_graph: record the backward pass, so that gradients can be differentiated.
            inputs: sum into these alone.

        Raises:
            AutogradError: nothing was recorded, what was saved is gone or was changed, or
                `gradient` does not fit.
        """
        seeds = None if gradient is None else (gradient,)
        _autograd().backward(self, seeds, retain_graph, create_graph, inputs)

    def register_hook(self, hook: Callable[..., Any]) -> Handle:
        """Call `hook(grad)` when the gradient of this tensor is there; it may return another."""
        if not self._requires:
            raise AutogradError("register_hook wants a tensor that requires grad")
        if self._node is not None:
            return Handle(self._node.hooked().tensor.setdefault(self._index, []), hook)
        self._hooks = [] if self._hooks is None else self._hooks
        return Handle(self._hooks, hook)

    def register_post_accumulate_grad_hook(self, hook: Callable[..., Any]) -> Handle:
        """Call `hook(tensor)` when backward has summed into its `.grad`. For leaves alone."""
        if not self._requires:
            raise AutogradError("a post-accumulate hook wants a tensor that requires grad")
        if self._node is not None:
            raise AutogradError("a post-accumulate hook wants a leaf, got a tensor with history")
        self._after = [] if self._after is None else self._after
        return Handle(self._after, hook)

    # Changes in place.

    def _edge(self) -> Edge | None:
        """Where its cotangents go."""
        if self._view is not None:
            self.value  # noqa: B018  renews its history
        if self._node is not None:
            return self._node, self._index
        return (self, 0) if self._requires else None

    def _put(self, array: Any) -> None:
        """Replace the array."""
        view = self._view
        if view is None:
            self._storage.write(array)
        else:
            from .views import written

            base = view.base
            base._put(written(view.steps)(base.value, array))

    def _become(self, new: Tensor) -> Tensor:
        """Take over the value and the history of `new`, as an operation in place does."""
        from .lift import apply
        from .views import written

        self._check_changeable()
        if new.shape != self.shape:
            raise AutogradError(
                f"an operation in place wants a result of the tensor's shape {list(self.shape)}, "
                f"got {list(new.shape)}"
            )
        if new.dtype != self.dtype:
            if not np.can_cast(new.dtype, self.dtype, "same_kind"):
                raise AutogradError(
                    f"an operation in place can't put {new.dtype} into a tensor of {self.dtype}"
                )
            new = new.astype(self.dtype)
        self._storage.spent = -1
        if self._view is not None:
            base = self._view.base
            base._become(apply(written(self._view.steps), (base, new)))
            return self
        if not mode.grad:
            self._put(new.value)
            return self
        if watching.owner is not None:
            meet(self)
        storage = self._storage
        node = new._node
        for saved in getattr(node, "saved", None) or ():
            if saved.storage is storage:  # the value before, which is not lost
                saved.storage, saved.version = Storage(saved.held), 0
            elif saved.storage is new._storage:  # its result is ours now
                saved.storage, saved.version = storage, storage.version + 1
        storage.write(new.value)
        self._node, self._index, self._requires = node, new._index, new._requires
        self._retains = False
        return self

    def _check_changeable(self) -> None:
        if not mode.grad:
            return
        if self._requires and self._node is None:
            raise AutogradError(
                "a leaf that requires grad can't be changed in place\n"
                "  do it under no_grad(), as optimisers do, or change a .clone()"
            )
        if self._view is not None:
            base = self._view.base
            if base._requires and base._node is None:
                raise AutogradError(
                    "a view of a leaf that requires grad can't be changed in place\n"
                    "  do it under no_grad(), or change a view of a .clone()"
                )

    def _refresh(self, view: View) -> None:
        """Compute a view again after its storage was changed, its history too."""
        from .lift import apply

        base = view.base
        if base._requires and self._requires | (base._node is not None):
            new: Any = base
            before, mode.grad = mode.grad, True
            try:
                for step in view.steps:
                    new = apply(step, (new,))
            finally:
                mode.grad = before
            self._node, self._index, self._requires = new._node, new._index, new._requires
            array = new.value
        else:
            array = base.value
            with no_grad():
                for step in view.steps:
                    array = apply(step, (array,)).value
        view.array, view.version = array, self._storage.version


@cache
def _autograd() -> ModuleType:
    """What walks graphs of tensors; an import at each call would take as long as an operation."""
    from . import autograd

    return autograd


def accumulate_into(leaf: Tensor, ct: Any, record: bool) -> None:
    """Sum a cotangent into `.grad`, the same tensor if there is one, and run the hooks after."""
    if leaf._grad is None:
        leaf._grad = ct if isinstance(ct, Tensor) else Tensor(ct)
    elif record:
        leaf._grad = leaf._grad + ct
    else:
        with no_grad():
            leaf._grad._put(jnp.add(leaf._grad.value, _plain(ct)))
    for hook in tuple(leaf._after or ()):
        hook(leaf)


def _check_float(dtype: Any) -> None:
    if not (is_inexact(dtype) or is_complex(dtype)):
        raise AutogradError(
            f"only tensors of floating point or complex dtype can require grad, got {dtype}"
        )


def as_tree(kind: type[Tensor]) -> None:
    """Let JAX look into tensors of a type: as arguments of a compiled function, for one."""
    jax.tree_util.register_pytree_node(kind, _flattened, _unflattened)


def _flattened(x: Tensor) -> tuple[tuple[Any], bool]:
    return (x.value,), x._requires


def _unflattened(requires: bool, children: Sequence[Any]) -> Tensor:
    from .capture import Capture

    new = Tensor(children[0])
    new._requires = requires
    if not isinstance(watching.owner, Capture):
        new._storage.owner = _ARGUMENT
    return new


_ARGUMENT = object()  # nobody's: an argument that is read is state, which may be changed in place


as_tree(Tensor)


def tensor(data: Any, requires_grad: bool = False, dtype: Any = None) -> Tensor:
    """Return a new leaf that holds a copy of `data`: numbers, sequences, arrays or a tensor.

    Args:
        data: what to copy.
        requires_grad: record operations on it.
        dtype: of the copy; by default as `jax.numpy.array` decides.

    Raises:
        ArgumentError: `data` is nothing that an array can be made of.
        AutogradError: integers are to require grad.
    """
    if isinstance(data, Tensor):
        data = data.value
    try:
        array = jnp.array(jax.tree.map(_plain, data), dtype=dtype)
    except (TypeError, ValueError) as error:
        raise ArgumentError(f"tensor can't be made of {type(data).__name__}: {error}") from error
    return Tensor(array).requires_grad_(requires_grad) if requires_grad else Tensor(array)


def _plain(x: Any) -> Any:
    return x.value if isinstance(x, Tensor) else x
