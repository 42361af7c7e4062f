"""`Module`: parameters, buffers and modules as attributes, found by their names."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Self

from ...compiler.state import watching
from ...ir.errors import ArgumentError
from ..capture import Capture
from ..node import Handle
from ..tensor import Tensor, as_tree, tensor


class Parameter(Tensor):
    """A leaf that requires grad; a module's attribute of this type is one of its parameters."""

    __slots__ = ()

    def __init__(self, data: Any, requires_grad: bool = True) -> None:
        """Shares no storage with `data`."""
        super().__init__(tensor(data).value)
        self.requires_grad = requires_grad


class Buffer(Tensor):
    """State of a module that is no parameter: running statistics, say."""

    __slots__ = ()

    def __init__(self, data: Any) -> None:
        """Shares no storage with `data`."""
        super().__init__(tensor(data).value)


as_tree(Parameter)
as_tree(Buffer)


class Module:
    """Base of models and their parts: override `forward`, call the module.

    Parameters, buffers and modules assigned as attributes are registered under their names.
    """

    _training: bool = True

    @property
    def training(self) -> bool:
        """True until `eval()`: dropout drops, batch norms take the batch's statistics."""
        capture = watching.owner
        if isinstance(capture, Capture):
            capture.setting(self, "_training", self._training)
        return self._training

    @training.setter
    def training(self, value: bool) -> None:
        self._training = value

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the module computes."""
        raise NotImplementedError(f"{type(self).__name__} has no forward")

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run `forward`, and the hooks around it."""
        hooks = self.__dict__.get("_hooks")
        if not hooks:
            return self.forward(*args, **kwargs)
        for hook in tuple(hooks[0]):
            changed = hook(self, args)
            if changed is not None:
                args = changed if isinstance(changed, tuple) else (changed,)
        result = self.forward(*args, **kwargs)
        for hook in tuple(hooks[1]):
            changed = hook(self, args, result)
            result = result if changed is None else changed
        return result

    def register_forward_pre_hook(self, hook: Callable[..., Any]) -> Handle:
        """Call `hook(module, args)` before `forward`; it may return other arguments."""
        return Handle(self.__dict__.setdefault("_hooks", ([], []))[0], hook)

    def register_forward_hook(self, hook: Callable[..., Any]) -> Handle:
        """Call `hook(module, args, result)` after `forward`; it may return another result."""
        return Handle(self.__dict__.setdefault("_hooks", ([], []))[1], hook)

    # What it holds.

    def named_children(self) -> Iterator[tuple[str, Module]]:
        """The modules that are attributes of this one."""
        for name, value in vars(self).items():
            if isinstance(value, Module):
                yield name, value

    def children(self) -> Iterator[Module]:
        """The modules that are attributes of this one."""
        return (child for _, child in self.named_children())

    def named_modules(self, prefix: str = "") -> Iterator[tuple[str, Module]]:
        """This module and all within it, each once, by dotted names."""
        seen: set[int] = set()
        pending: list[tuple[str, Module]] = [(prefix, self)]
        while pending:
            name, module = pending.pop()
            if id(module) in seen:
                continue
            seen.add(id(module))
            yield name, module
            below = [(f"{name}.{k}" if name else k, m) for k, m in module.named_children()]
            pending += reversed(below)

    def modules(self) -> Iterator[Module]:
        """This module and all within it."""
        return (module for _, module in self.named_modules())

    def _named(self, kind: type[Tensor]) -> Iterator[tuple[str, Tensor]]:
        seen: set[int] = set()
        for prefix, module in self.named_modules():
            for name, value in vars(module).items():
                if isinstance(value, kind) and id(value) not in seen:
                    seen.add(id(value))
                    yield (f"{prefix}.{name}" if prefix else name), value

    def named_parameters(self) -> Iterator[tuple[str, Tensor]]:
        """Parameters by dotted names, each once."""
        return self._named(Parameter)

    def parameters(self) -> Iterator[Tensor]:
        """Parameters, each once."""
        return (p for _, p in self.named_parameters())

    def named_buffers(self) -> Iterator[tuple[str, Tensor]]:
        """Buffers by dotted names."""
        return self._named(Buffer)

    def buffers(self) -> Iterator[Tensor]:
        """Buffers."""
        return (b for _, b in self.named_buffers())

    def register_parameter(self, name: str, value: Parameter | None) -> None:
        """Set a parameter by its name."""
        setattr(self, name, value)

    def register_buffer(self, name: str, value: Any) -> None:
        """Set a buffer by its name."""
        setattr(self, name, None if value is None else Buffer(value))

    # State.

    def state_dict(self) -> dict[str, Tensor]:
        """Parameters and buffers by dotted names, without history."""
        both = (*self.named_parameters(), *self.named_buffers())
        return {name: value.detach() for name, value in both}

    def load_state_dict(self, state: Mapping[str, Any], strict: bool = True) -> None:
        """Take over values by name. Raises `ArgumentError` for names or shapes that differ.

        Nothing is changed when anything does not fit.
        """
        own = dict((*self.named_parameters(), *self.named_buffers()))
        missing = [name for name in own if name not in state]
        extra = [name for name in state if name not in own]
        if strict and (missing or extra):
            raise ArgumentError(
                f"the state does not fit {type(self).__name__}: missing {missing or 'nothing'}, "
                f"unexpected {extra or 'nothing'}"
            )
        new = {name: tensor(state[name]) for name in own if name in state}
        for name, value in new.items():
            if value.shape != own[name].shape:
                raise ArgumentError(
                    f"{name} has shape {list(own[name].shape)}, the state {list(value.shape)}"
                )
        for name, value in new.items():
            own[name]._put(value.value.astype(own[name].dtype))

    def train(self, mode: bool = True) -> Self:
        """Set the training mode of this module and all within."""
        for module in self.modules():
            module.training = mode
        return self

    def eval(self) -> Self:
        """End the training mode."""
        return self.train(False)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Drop the gradients of all parameters, or set them to zero."""
        zero_grads(self.parameters(), set_to_none)

    def requires_grad_(self, requires_grad: bool = True) -> Self:
        """Set `requires_grad` of all parameters."""
        for p in self.parameters():
            p.requires_grad_(requires_grad)
        return self

    def apply(self, fun: Callable[[Module], None]) -> Self:
        """Call `fun` on every module within, and on this one last."""
        for child in self.children():
            child.apply(fun)
        fun(self)
        return self

    def __repr__(self) -> str:
        """The modules within, indented."""
        rows = [f"  ({k}): " + repr(m).replace("\n", "\n  ") for k, m in self.named_children()]
        inner = "\n" + "\n".join(rows) + "\n" if rows else self.extra_repr()
        return f"{type(self).__name__}({inner})"

    def extra_repr(self) -> str:
        """What a module without modules shows."""
        return ""


def zero_grads(parameters: Iterable[Tensor], set_to_none: bool) -> None:
    """Drop gradients, or set them to zero."""
    for p in parameters:
        if set_to_none:
            p._grad = None
        elif p._grad is not None:
            p._grad = p._grad.detach()
            p._grad._put(p._grad.value * 0)
            p._grad._storage.spent = -1


class ModuleList(Module):
    """Modules by number."""

    def __init__(self, modules: Iterable[Module] = ()) -> None:
        """In this order."""
        for module in modules:
            self.append(module)

    def append(self, module: Module) -> Self:
        """Add one at the end."""
        setattr(self, str(len(self)), module)
        return self

    def __len__(self) -> int:
        """Number of modules."""
        return sum(1 for _ in self.children())

    def __iter__(self) -> Iterator[Module]:
        """In order."""
        return self.children()

    def __getitem__(self, i: int) -> Module:
        """The one at a place."""
        return list(self.children())[i]


class Sequential(ModuleList):
    """Modules one after the other."""

    def __init__(self, *modules: Module) -> None:
        """In this order."""
        super().__init__(modules)

    def forward(self, x: Any) -> Any:
        """Through all of them."""
        for module in self.children():
            x = module(x)
        return x
