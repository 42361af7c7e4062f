"""Optimisers, on Optax: PyTorch's names and defaults, one compiled program a step."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache, partial
from typing import Any

import jax
import jax.numpy as jnp

from ..compiler.state import watching
from ..ir.errors import ArgumentError
from ..runtime.xla import Jitted
from .capture import Capture
from .mistakes import Watch
from .modes import enable_grad
from .nn.module import zero_grads
from .storage import Storage
from .tensor import Tensor
from .whole import KNOWN, Program, awaited

try:
    import optax
except ModuleNotFoundError as error:  # pragma: no cover
    raise ModuleNotFoundError("backpass.dynamic.optim needs Optax: pip install optax") from error


_NO_SETTINGS = ("params", "param_names", "lr")  # what no program is chosen by


class Optimizer:
    """Base of optimisers: an Optax transformation of each parameter's gradient, times -lr.

    `param_groups` are dicts with `params` and settings such as `lr`, which may be changed.
    Parameters whose `.grad` is None are left alone.
    """

    def __init__(self, params: Iterable[Any], defaults: Mapping[str, Any]) -> None:
        """Tensors, pairs of a name and a tensor, or dicts with `params` and own settings."""
        groups = list(params)
        if not groups:
            raise ValueError(f"{type(self).__name__} wants parameters, got none")
        if not isinstance(groups[0], dict):
            groups = [{"params": groups}]
        self.param_groups: list[dict[str, Any]] = []
        for group in groups:
            many = group["params"]
            listed = [many] if isinstance(many, Tensor) else list(many)
            if all(isinstance(p, tuple) for p in listed):
                names, listed = [name for name, _ in listed], [p for _, p in listed]
                group = {**group, "param_names": names}
            for p in listed:
                if not isinstance(p, Tensor):
                    raise TypeError(f"{type(self).__name__} wants tensors, got {type(p).__name__}")
                if not p.is_leaf:
                    raise ValueError(f"{type(self).__name__} wants leaves, got a computed tensor")
            self.param_groups.append({**defaults, **group, "params": listed})
        self._programs: dict[Any, Any] = {}
        self._watch = Watch(type(self).__name__)
        self.state: dict[Tensor, Storage] = {
            p: Storage(self._program(group).init(p.value))
            for group in self.param_groups
            for p in group["params"]
        }

    def transformation(self, group: Mapping[str, Any]) -> optax.GradientTransformation:
        """What makes of gradients the direction to go against, by a group's settings."""
        raise NotImplementedError

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Drop the gradients of all parameters, or set them to zero."""
        for group in self.param_groups:
            zero_grads(group["params"], set_to_none)

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Move the parameters by their gradients; `closure` computes the loss and them first."""
        loss = None
        if closure is not None:
            with enable_grad():
                loss = closure()
        used = self._watch.check(self.param_groups)
        for group in self.param_groups:
            self._move(group)
        for storage in used:
            storage.spent = storage.version
        return loss

    def _program(self, group: Mapping[str, Any]) -> Any:
        """The compiled move of a group with such settings."""
        settings = tuple((k, v) for k, v in group.items() if k not in _NO_SETTINGS)
        capture = watching.owner
        for name, value in settings if isinstance(capture, Capture) else ():
            capture.setting(group, name, value)
        if settings not in self._programs:
            self._programs[settings] = _Update(self.transformation(group))
        return self._programs[settings]

    def _move(self, group: dict[str, Any]) -> None:
        moved = [p for p in group["params"] if p._grad is not None]
        if not moved:
            return
        capture = watching.owner
        lr = capture.number(group, "lr") if isinstance(capture, Capture) else group["lr"]
        update = self._program(group)
        states = [self.state[p].read() for p in moved] if update.keeps else None
        values = [p.value for p in moved]
        grads = [p._grad for p in moved]
        new, states = update(values, grads, states, lr)
        for p, x in zip(moved, new, strict=True):
            p._put(x)
        if states is not None:
            for p, state in zip(moved, states, strict=True):
                self.state[p].write(state)

    def storages(self) -> list[Storage]:
        """All that a step may change: parameters and states."""
        params = [p._storage for group in self.param_groups for p in group["params"]]
        return [*params, *self.state.values()]

    def state_dict(self) -> dict[str, Any]:
        """Settings and states, by the parameters' places."""
        place: dict[Tensor, int] = {}
        groups = []
        for group in self.param_groups:
            for p in group["params"]:
                place.setdefault(p, len(place))
            groups.append({**group, "params": [place[p] for p in group["params"]]})
        return {
            "state": {place[p]: state.read() for p, state in self.state.items()},
            "param_groups": groups,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go back to a state. Raises `ArgumentError` when the groups differ in size."""
        sizes = [len(group["params"]) for group in self.param_groups]
        given = [len(group["params"]) for group in state["param_groups"]]
        if sizes != given:
            raise ArgumentError(f"the state has groups of {given} parameters, expected {sizes}")
        many: list[Tensor] = []
        for group, saved in zip(self.param_groups, state["param_groups"], strict=True):
            many += [p for p in group["params"] if p not in many]
            group.update({k: v for k, v in saved.items() if k != "params"})
        for i, each in state["state"].items():
            self.state[many[int(i)]].write(each)


class _Update:
    """One group's move, compiled; with the backward walk before it, where that has waited.

    `keeps` is False where states hold no arrays, as is seen at the first call: later ones do
    without, and none are returned.
    """

    def __init__(self, transformation: optax.GradientTransformation) -> None:
        self.init, self._update = transformation.init, transformation.update
        self.keeps = True
        self._alone = jax.jit(self._move)
        self._rate: tuple[Any, Any] = None, None  # the last number under which setting, its array
        self._after = lru_cache(KNOWN)(lambda *key: Jitted(partial(self._walk_and_move, *key)))

    def __call__(
        self, values: Sequence[Any], grads: Sequence[Any], states: Sequence[Any] | None, lr: Any
    ) -> tuple[Any, Any]:
        """New values and states; `grads` are tensors."""
        if type(lr) is float:
            lr = self._array(lr)
        storages = [g._storage for g in grads]
        walk = awaited(storages)
        reads = None if walk is None else walk.reads
        if walk is None or reads is None:
            new, states = self._alone(values, [g.value for g in grads], states, lr)
        else:
            program = self._after(walk.program, tuple([s.at for s in storages]))
            new, states, found = program(*reads, values, states, lr)
            walk.arrive(found)
        self.keeps = states is not None
        return new, states

    def _array(self, lr: float) -> Any:
        """A rate as an array, which a program takes in less time; as weak a type as a number."""
        key = lr, jax.config.jax_enable_x64  # type: ignore[attr-defined]
        if self._rate[0] != key:
            with jax.ensure_compile_time_eval():
                self._rate = key, jnp.asarray(lr)
        return self._rate[1]

    def _move(self, values: Any, grads: Any, states: Any, lr: Any) -> tuple[Any, Any]:
        new, after = [], []
        if states is None:
            states = [self.init(x) for x in values]
        for x, g, state in zip(values, grads, states, strict=True):
            direction, later = self._update(g, state, x)
            new.append((x - lr * direction).astype(x.dtype))
            after.append(later)
        return new, (after if jax.tree.leaves(after) else None)

    def _walk_and_move(
        self, program: Program, places: Any, saved: Any, seeds: Any, values: Any, *rest: Any
    ) -> tuple[Any, Any, Any]:
        found = program.walk(saved, seeds, [None] * program.count)
        return *self._move(values, [found[i] for i in places], *rest), found


def _decayed(group: Mapping[str, Any], *parts: Any) -> optax.GradientTransformation:
    """The parts, after the decay of weights as a part of the gradient."""
    decay = group["weight_decay"]
    return optax.chain(
        optax.identity(), *([optax.add_decayed_weights(decay)] if decay else []), *parts
    )


class SGD(Optimizer):
    """Against the gradient: v = momentum v + g; p -= lr v."""

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
    ) -> None:
        """As PyTorch's."""
        if nesterov and not momentum:
            raise ValueError("nesterov wants a momentum above 0")
        super().__init__(
            params,
            {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "nesterov": nesterov},
        )

    def transformation(self, group: Mapping[str, Any]) -> optax.GradientTransformation:
        """Momentum."""
        momentum = group["momentum"]
        moving = [optax.trace(momentum, group["nesterov"])] if momentum else []
        return _decayed(group, *moving)


class Momentum(SGD):
    """SGD with a momentum of 0.9 by default."""

    def __init__(
        self, params: Iterable[Any], lr: float = 1e-3, momentum: float = 0.9, **options: Any
    ) -> None:
        """As `SGD`."""
        super().__init__(params, lr, momentum, **options)


class Adam(Optimizer):
    """Kingma and Ba 2015; `weight_decay` is a part of the gradient."""

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        """As PyTorch's."""
        super().__init__(
            params, {"lr": lr, "betas": tuple(betas), "eps": eps, "weight_decay": weight_decay}
        )

    def transformation(self, group: Mapping[str, Any]) -> optax.GradientTransformation:
        """Two moments."""
        return _decayed(group, optax.scale_by_adam(*group["betas"], group["eps"]))


class AdamW(Adam):
    """Loshchilov and Hutter 2019: the decay goes beside the gradient."""

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
    ) -> None:
        """As PyTorch's."""
        super().__init__(params, lr, betas, eps, weight_decay)

    def transformation(self, group: Mapping[str, Any]) -> optax.GradientTransformation:
        """Two moments, then the decay."""
        moments = optax.scale_by_adam(*group["betas"], group["eps"])
        return optax.chain(moments, optax.add_decayed_weights(group["weight_decay"]))


class RMSprop(Optimizer):
    """Tieleman and Hinton 2012, with the momentum of PyTorch's."""

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-2,
        alpha: float = 0.99,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        momentum: float = 0.0,
    ) -> None:
        """As PyTorch's."""
        super().__init__(
            params,
            {
                "lr": lr,
                "alpha": alpha,
                "eps": eps,
                "weight_decay": weight_decay,
                "momentum": momentum,
            },
        )

    def transformation(self, group: Mapping[str, Any]) -> optax.GradientTransformation:
        """The second moment, then momentum."""
        scaled = optax.scale_by_rms(group["alpha"], group["eps"], eps_in_sqrt=False)
        momentum = group["momentum"]
        return _decayed(group, scaled, *([optax.trace(momentum)] if momentum else []))


class Lion(Optimizer):
    """Chen et al. 2023: the sign of a moment."""

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-4,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
    ) -> None:
        """The decay goes beside the gradient."""
        super().__init__(params, {"lr": lr, "betas": tuple(betas), "weight_decay": weight_decay})

    def transformation(self, group: Mapping[str, Any]) -> optax.GradientTransformation:
        """The sign, then the decay."""
        sign = optax.scale_by_lion(*group["betas"])
        return optax.chain(sign, optax.add_decayed_weights(group["weight_decay"]))


class Optax(Optimizer):
    """Any Optax transformation, of all parameters together; it holds its own learning rate."""

    def __init__(self, params: Iterable[Any], transformation: optax.GradientTransformation) -> None:
        """`transformation` gives updates that are added."""
        super().__init__(params, {"lr": 1.0})
        if len(self.param_groups) > 1:
            raise ArgumentError("Optax wants one group of parameters")
        self._whole = transformation
        self._run = jax.jit(self._update)
        self._held = Storage(transformation.init([p.value for p in self.param_groups[0]["params"]]))

    def transformation(self, group: Mapping[str, Any]) -> optax.GradientTransformation:
        """Of no single parameter."""
        return optax.identity()

    def _update(self, values: Any, grads: Any, held: Any) -> tuple[Any, Any]:
        full = [g if g is not None else 0 * x for g, x in zip(grads, values, strict=True)]
        updates, held = self._whole.update(full, held, values)
        return optax.apply_updates(values, updates), held

    def _move(self, group: dict[str, Any]) -> None:
        params = group["params"]
        values = [p.value for p in params]
        grads = [None if p._grad is None else p._grad.value for p in params]
        new, held = self._run(values, grads, self._held.read())
        self._held.write(held)
        for p, x in zip(params, new, strict=True):
            if p._grad is not None:
                p._put(x)

    def storages(self) -> list[Storage]:
        """With the transformation's state."""
        return [*super().storages(), self._held]

    def state_dict(self) -> dict[str, Any]:
        """The transformation's state."""
        return {**super().state_dict(), "held": self._held.read()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go back to a state."""
        super().load_state_dict(state)
        self._held.write(state["held"])
