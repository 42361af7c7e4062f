"""What operations save, packed by the user or made again: `saved_tensors_hooks`, `checkpoint`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from ..ir.errors import AutogradError
from .modes import enable_grad, mode
from .random import get_rng_state, set_rng_state
from .tensor import Tensor


class saved_tensors_hooks:  # noqa: N801  PyTorch's name
    """Within, what is saved for backward is kept as `pack(tensor)` and read as `unpack(packed)`."""

    def __init__(self, pack: Callable[[Tensor], Any], unpack: Callable[[Any], Tensor]) -> None:
        """`pack` is called once for each, `unpack` at each use."""
        self._hooks = pack, unpack

    def __enter__(self) -> None:
        """Begin; the innermost hooks hold."""
        mode.packing = (*mode.packing, self._hooks)

    def __exit__(self, *_: object) -> None:
        """End."""
        mode.packing = mode.packing[:-1]


class _Again:
    """One call of a checkpointed function: what it saved, made again when first asked for."""

    def __init__(self, run: Callable[[], Any], preserve: bool) -> None:
        self.run = run
        self.preserve = preserve
        self.state = get_rng_state() if preserve else None
        self.kinds: list[tuple[Any, Any]] = []  # shape and dtype of each thing saved
        self.found: dict[int, Any] = {}

    def pack(self, tensor: Tensor) -> int:
        """A number in place of the tensor."""
        self.kinds.append((tensor.shape, tensor.dtype))
        return len(self.kinds) - 1

    def unpack(self, number: int) -> Tensor:
        """The tensor, used up: each walk makes all of them again."""
        if number not in self.found:
            self._make()
        return self.found.pop(number)  # type: ignore[no-any-return]

    def _make(self) -> None:
        made: list[Tensor] = []

        def pack(tensor: Tensor) -> Tensor:
            made.append(tensor)
            return tensor

        with self._random(), enable_grad(), saved_tensors_hooks(pack, lambda x: x):
            self.run()
        kinds = [(x.shape, x.dtype) for x in made]
        if kinds != self.kinds:
            raise AutogradError(self._difference(kinds))
        self.found = dict(enumerate(made))

    @contextmanager
    def _random(self) -> Iterator[None]:
        """The stream as it was at the first run; as it is, afterwards."""
        if self.state is None:
            yield
            return
        now = get_rng_state()
        set_rng_state(self.state)
        try:
            yield
        finally:
            set_rng_state(now)

    def _difference(self, kinds: list[tuple[Any, Any]]) -> str:
        if len(kinds) != len(self.kinds):
            what = f"{len(kinds)} tensors, the first run saved {len(self.kinds)}"
        else:
            i = next(
                i
                for i, pair in enumerate(zip(kinds, self.kinds, strict=True))
                if pair[0] != pair[1]
            )
            (shape, dtype), (shape0, dtype0) = kinds[i], self.kinds[i]
            what = f"{dtype}{list(shape)} as tensor {i}, the first run {dtype0}{list(shape0)}"
        return (
            f"a checkpointed function that ran again saved {what}\n"
            "  it has to compute the same each time: look for state that changes between the runs"
        )


def checkpoint(
    function: Callable[..., Any], *args: Any, preserve_rng_state: bool = True, **kwargs: Any
) -> Any:
    """Run `function(*args, **kwargs)`; what it saves for backward is made again when needed.

    Memory for time: the function runs a second time in the backward pass.

    Args:
        function: a function of tensors and anything else.
        args: its arguments.
        preserve_rng_state: draw the random numbers of the first run in the second.
        kwargs: its arguments by name.

    Raises:
        AutogradError: in the backward pass, if what the second run saves differs in number, shape
            or dtype.
    """
    kwargs.pop("use_reentrant", None)  # PyTorch's; ours is as its False
    if not mode.grad:
        return function(*args, **kwargs)
    again = _Again(lambda: function(*args, **kwargs), preserve_rng_state)
    with saved_tensors_hooks(again.pack, again.unpack):
        return function(*args, **kwargs)
