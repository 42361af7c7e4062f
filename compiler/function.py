"""The function that `bp.compile` makes."""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import jax

from ..ir.errors import ArgumentError, BackpassError
from ..ir.graph import Graph
from ..ir.jax_compat import forget_calls, is_part
from ..ir.types import Spec
from .asked import Asked
from .binding import Binding
from .budget import Planning
from .built import Built, Unplaced, Unsettled, Unweighed
from .diagnose import defined_at, explain_failure, is_exhausted
from .explain import Explanation, History
from .headroom import out_of_memory
from .nonfinite import Guard
from .options import Options, pipeline_of
from .placement import key_of_call
from .programs import Programs
from .stages import Compiled, Lowered, Traced
from .state import Stateful


class CompiledFunction:
    """A function that runs as one optimised XLA program for each signature of its arguments.

    A call goes straight to `jax.jit`'s own path. Only when that has no program for a signature
    does it come back to be traced, differentiated, rewritten and bound.
    """

    def __init__(self, fun: Callable[..., Any], options: Options) -> None:
        """Made by `compile`, where the options are explained."""
        functools.update_wrapper(self, fun)
        asked = Asked.of(fun, options)
        self._begin(Programs(asked, History(fun, asked.name, options.max_traces)), {})

    def _begin(
        self, programs: Programs, elsewhere: dict[tuple[Spec, ...], CompiledFunction]
    ) -> None:
        """Start without programs; `elsewhere` are functions for arguments that lie otherwise."""
        self._asked = programs.asked
        self._programs = programs
        self._history = programs.history
        self._lock = programs.lock
        self._binding = Binding(programs)
        self._elsewhere = elsewhere
        self._by_place = False
        self._places: dict[Hashable, CompiledFunction] = {}
        self._by_state: Any = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the step. Arguments that were donated must not be used again."""
        if self._by_state is not None:
            return self._by_state(*args, **kwargs)
        if self._by_place and (there := self._there(args, kwargs)) is not self:
            return there(*args, **kwargs)
        self._history.calls += 1
        binding, part = self._binding, is_part()
        try:
            return (binding.inner if part else binding.jit)(*args, **kwargs)
        except (Unplaced, Unsettled, Unweighed) as met:
            lacked = type(met)  # out of here, so that no later error has it for a context
        except (Exception, Stateful) as met:
            return self._after(met, args, kwargs)
        finally:
            if binding.watches:
                binding.finish(compiles=not part)
        return self._again(lacked, args, kwargs)

    def _again(self, lacked: type[Exception], args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        """Find out what a program lacked when it was asked for, and call again."""
        self._history.calls -= 1  # it is the same call
        forget_calls(self._binding.jit)
        if lacked is Unplaced:
            return self._at(args, kwargs)(*args, **kwargs)
        if lacked is Unsettled:
            built = self._programs.of(args, kwargs)
            with built.lock:  # another thread may have settled it meanwhile
                if built.open:
                    self._binding.settle(built, args, kwargs)
        else:
            self._binding.weigh(args, kwargs)
        return self._awaited(args, kwargs)

    def _after(self, met: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        """Go on where a call of JAX's function has ended: with its state, or an error."""
        if isinstance(met, Stateful):
            return self._with_state(met)(*args, **kwargs)
        if isinstance(met, ValueError) and not isinstance(met, BackpassError):
            self._asked.placement(args, kwargs)  # raises where they do not fit
        arrays, static = self._asked.arguments.listed(args, kwargs)
        exhausted = functools.partial(self._programs.exhausted, args, kwargs)
        explained = explain_failure(self._asked.fun, met, arrays, static, exhausted)
        if explained is met:
            raise met
        raise explained from met

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        """Bind as a method, as a plain function would; the stages are bound too."""
        if instance is None:
            return self
        bound: Any = functools.partial(self, instance)
        bound.trace = functools.partial(self.trace, instance)
        bound.lower = functools.partial(self.lower, instance)
        bound.explain = self.explain
        return bound

    def trace(self, *args: Any, **kwargs: Any) -> Traced:
        """Trace and import; arguments may be arrays or `jax.ShapeDtypeStruct`s."""
        if (there := self._at(args, kwargs)) is not self:
            return there.trace(*args, **kwargs)
        try:
            built = self._programs.of(args, kwargs)
        except Stateful as met:
            self._with_state(met)
        if self._by_state is not None:
            return self._by_state.trace(*args, **kwargs)  # type: ignore[no-any-return]
        return Traced(built.program, lambda: self.lower(*args, **kwargs))

    def lower(self, *args: Any, **kwargs: Any) -> Lowered:
        """Trace, import and run the passes; see `Lowered`."""
        if (there := self._at(args, kwargs)) is not self:
            return there.lower(*args, **kwargs)
        try:
            built = self._programs.of(args, kwargs)
        except Stateful as met:
            self._with_state(met)
        if self._by_state is not None:
            return self._by_state.lower(*args, **kwargs)  # type: ignore[no-any-return]
        with built.lock:
            stages, plan, steps = built.stages, built.plan, built.steps
        of, binding = self._programs.of, self._binding
        return Lowered(
            built.program,
            stages,
            plan,
            lambda: binding.lower(of(args, kwargs), args, kwargs),
            lambda: self._compile(args, kwargs),
            lambda platforms: binding.export(of(args, kwargs), args, kwargs, platforms),
            tuple(sorted(built.donated)),
            steps,
        )

    def forms(
        self, args: Sequence[Any], kwargs: dict[str, Any]
    ) -> tuple[list[Graph], frozenset[int]]:
        """Return what a planner gets, and the positions of donated inputs."""
        if (there := self._at(args, kwargs)) is not self:
            return there.forms(args, kwargs)
        built = self._programs.of(args, kwargs)
        return built.graphs(self._asked.options), built.donated

    def without_plan(
        self, passes: Any, options: dict[str, Any], place: tuple[str, str]
    ) -> CompiledFunction:
        """Return this function with no budget, and with other passes and options where given.

        `place` as in `Options`.
        """
        mine = self._asked.options
        asked = replace(mine, passes=pipeline_of(passes)) if passes else mine
        asked = replace(asked, planning=Planning(), place=place, jit={**mine.jit, **options})
        return type(self)(self._asked.fun, asked)

    @property
    def tells_health(self) -> bool:
        """True where a call returns `(result, Health)`."""
        return self._asked.options.health is not None

    def of_state(self, fun: Callable[..., Any], labels: Mapping[str, str]) -> CompiledFunction:
        """Compile `fun` as this function was asked to be; its first argument is given away.

        `labels` are names that its arguments have for people, by their paths.
        """
        options = self._asked.options
        names = "static_argnums static_argnames donate_argnums donate_argnames in_shardings"
        mine = (*names.split(), "out_shardings")
        taken = [name for name in mine if options.jit.get(name) is not None]
        if taken:
            raise ArgumentError(
                f"{self._asked.name} reads tensors that it closes over; {taken[0]} is not for such "
                "a function\n  close over settings, and leave memory to be donated to us"
            )
        health = labels if self.tells_health else None
        jit = {**options.jit, "donate_argnums": 0}
        return type(self)(fun, replace(options, jit=jit, health=health))

    def explain(self) -> Explanation:
        """Return the traces so far, why each happened, and the seconds of each phase."""
        if self._by_state is not None:
            return self._by_state.explain()  # type: ignore[no-any-return]
        return self._history.explanation()

    def _with_state(self, met: Stateful) -> Any:
        """What calls go to from now on: the function with its state passed in and out."""
        with self._lock:
            if self._by_state is None:
                self._by_state = met.build(self)
            return self._by_state

    def _compile(self, args: Sequence[Any], kwargs: dict[str, Any]) -> Compiled:
        built = self._programs.of(args, kwargs)
        with self._explained(args, kwargs), built.lock:
            executable = self._binding.settle(built, args, kwargs)
            stages, plan, steps = built.stages, built.plan, built.steps

        def exhausted(error: Exception, leaves: Sequence[Any]) -> Exception:
            return out_of_memory(self._asked.fun, error, built, leaves, self._asked.options)

        export = functools.partial(self._binding.export, built, args, kwargs)
        guard = self._guard(built)
        return Compiled(executable, stages, plan, exhausted, export, guard, steps)

    def _guard(self, built: Built) -> Guard | None:
        """What looks at the results of a program, where something does."""
        return None

    def _awaited(self, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        """Call for the first time; wait, so that it is us who tells that memory ran out."""
        out = CompiledFunction.__call__(self, *args, **kwargs)
        with self._explained(args, kwargs):
            return jax.block_until_ready(out)

    @contextmanager
    def _explained(self, args: Sequence[Any], kwargs: dict[str, Any]) -> Iterator[None]:
        """Explain that memory ran out."""
        try:
            yield
        except jax.errors.JaxRuntimeError as error:
            if isinstance(error, BackpassError) or not is_exhausted(error):
                raise
            raise self._programs.exhausted(args, kwargs, error) from error

    def _there(self, args: Sequence[Any], kwargs: dict[str, Any]) -> CompiledFunction:
        """The same as `_at`, which is remembered for calls like this one."""
        key = key_of_call(self._asked.arguments, args, kwargs)
        if key is None:
            return self._at(args, kwargs)
        found = self._places.get(key)
        if found is None:
            found = self._places[key] = self._at(args, kwargs)
        return found

    def _at(self, args: Sequence[Any], kwargs: dict[str, Any]) -> CompiledFunction:
        """Return the function for arguments that lie as these do: this one, or another like it.

        `jax.jit` knows programs by shapes alone, and compiles one for each way that arguments lie;
        a plan holds for one way.
        """
        signature = self._asked.arguments.signature(args, kwargs)
        specs = self._asked.placement(args, kwargs)
        self._by_place = self._asked.options.planning.active and jax.device_count() > 1
        mine = self._programs.lying(signature, specs)
        if mine == specs:
            return self
        with self._lock:
            self._elsewhere.setdefault(mine, self)
            if specs not in self._elsewhere:
                self._elsewhere[specs] = self._without_programs()
            return self._elsewhere[specs]

    def _without_programs(self) -> CompiledFunction:
        """Return this function without its programs; it shares their history."""
        other = object.__new__(type(self))
        functools.update_wrapper(other, self._asked.fun)
        other._begin(Programs(self._asked, self._history, self._lock), self._elsewhere)
        return other

    def __repr__(self) -> str:
        """Name and place of the function."""
        return f"<backpass.compile {defined_at(self._asked.fun)}>"
