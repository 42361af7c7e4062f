"""The function that `bp.compile` makes."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import jax

from ..ir.errors import ArgumentError, BackpassError, BatchError, BudgetError
from ..ir.graph import Graph
from ..ir.types import Spec
from ..passes import Pass
from ..passes.rematerialise import Planned
from ..runtime.lower import lowered
from ..runtime.progress import Watch
from .budget import Planning, obeyed, peak_bytes
from .built import Built, Unplaced, Unsettled, Unweighed
from .captured import warn_of_captured
from .diagnose import defined_at, explain_failure, is_exhausted
from .dump import dump_by_environment
from .explain import Explanation, History
from .exported import Exported, exported_of
from .fallback import forbid
from .fitted import MOST, fitted
from .headroom import may_be_short, out_of_memory, warn_of_memory
from .health import with_health
from .nonfinite import Guard
from .options import AUTO, Options, pipeline_of
from .placement import check_results_even, placement
from .program import Signature, collection_paused, trace_program
from .stages import Compiled, Lowered, Traced
from .state import Stateful


def holds_tracers(args: Sequence[Any], kwargs: dict[str, Any]) -> bool:
    """True inside a program that somebody else compiles, where JAX refuses XLA's options."""
    return any(isinstance(x, jax.core.Tracer) for x in jax.tree.leaves((args, kwargs)))


class CompiledFunction:
    """A function that runs as one optimised XLA program for each signature of its arguments.

    A call goes straight to `jax.jit`'s own path. Only when that has no program for a signature
    does it come back to be traced, differentiated, rewritten and bound.
    """

    def __init__(self, fun: Callable[..., Any], options: Options) -> None:
        """Made by `compile`, where the options are explained."""
        functools.update_wrapper(self, fun)
        self._fun = fun
        self._name = getattr(fun, "__name__", type(fun).__name__)
        self._options = options
        self._arguments = options.static(fun)
        self._donates = options.donated(fun)
        self._history = History(fun, self._name, options.max_traces)
        self._lock = threading.RLock()  # of the attributes below; never held in a trace or compile
        self._calls = 0
        self._programs: dict[Any, Built] = {}
        self._specs: dict[Signature, tuple[Spec, ...]] = {}  # how the arguments lie on a mesh
        self._elsewhere: dict[tuple[Spec, ...], CompiledFunction] = {}  # for those that lie so
        self._by_place = False
        self._watches: dict[int, tuple[Watch, object]] = {}  # what each thread compiles
        self._told_captured = False
        self._by_state: Any = None
        self._jit = self._fresh_jit()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the step. Arguments that were donated must not be used again."""
        if self._by_state is not None:
            return self._by_state(*args, **kwargs)
        if self._by_place and (there := self._at(args, kwargs)) is not self:
            return there(*args, **kwargs)
        self._calls += 1
        try:
            return self._jit(*args, **kwargs)
        except (Exception, Stateful) as met:
            return self._after(met, args, kwargs)
        finally:
            if self._watches:
                self._finish(compiles=not holds_tracers(args, kwargs))

    def _after(self, met: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        """Go on where a call of JAX's function has ended: with what it lacks, or an error."""
        if isinstance(met, Stateful):
            return self._with_state(met)(*args, **kwargs)
        if isinstance(met, Unplaced):
            self._calls -= 1
            return self._at(args, kwargs)(*args, **kwargs)
        if isinstance(met, Unsettled | Unweighed):
            self._calls -= 1  # it is the same call again
            if isinstance(met, Unsettled):
                built = self._program(args, kwargs)
                with built.lock:  # another thread may have settled it meanwhile
                    if built.open:
                        self._settle(built, args, kwargs)
            else:
                self._weigh(args, kwargs)
            return self._awaited(args, kwargs)
        if self._options.planning.active and holds_tracers(args, kwargs):
            return self._inner(*args, **kwargs)
        if isinstance(met, ValueError) and not isinstance(met, BackpassError):
            self._placement(args, kwargs)  # raises where they do not fit
        arrays, static = self._arguments.listed(args, kwargs)
        exhausted = functools.partial(self._exhausted, args, kwargs)
        explained = explain_failure(self._fun, met, arrays, static, exhausted)
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
            built = self._program(args, kwargs)
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
            built = self._program(args, kwargs)
        except Stateful as met:
            self._with_state(met)
        if self._by_state is not None:
            return self._by_state.lower(*args, **kwargs)  # type: ignore[no-any-return]
        with built.lock:
            stages, plan = built.stages, built.plan
        return Lowered(
            built.program,
            stages,
            plan,
            lambda: self._as_planned(args, kwargs),
            lambda: self._compile(args, kwargs),
            lambda platforms: self._exported(args, kwargs, platforms),
            tuple(sorted(built.donated)),
        )

    def joint(self, args: Sequence[Any], kwargs: dict[str, Any]) -> tuple[Graph, frozenset[int]]:
        """Return the graph that the planner gets, and the positions of its donated inputs."""
        if (there := self._at(args, kwargs)) is not self:
            return there.joint(args, kwargs)
        built = self._program(args, kwargs)
        return built.passed[-1].graph, built.donated

    def without_plan(
        self, passes: Any, usual: Sequence[Pass], options: dict[str, Any]
    ) -> CompiledFunction:
        """Return this function with no budget, and with other passes and options where given.

        `usual` are the passes where neither names any.
        """
        mine = self._options
        passes = pipeline_of(passes) if passes else mine.passes or tuple(usual)
        return type(self)(
            self._fun,
            replace(mine, passes=passes, planning=Planning(), jit={**mine.jit, **options}),
        )

    @property
    def tells_health(self) -> bool:
        """True where a call returns `(result, Health)`."""
        return self._options.health is not None

    def of_state(self, fun: Callable[..., Any], labels: Mapping[str, str]) -> CompiledFunction:
        """Compile `fun` as this function was asked to be; its first argument is given away.

        `labels` are names that its arguments have for people, by their paths.
        """
        names = "static_argnums static_argnames donate_argnums donate_argnames in_shardings"
        mine = (*names.split(), "out_shardings")
        taken = [name for name in mine if self._options.jit.get(name) is not None]
        if taken:
            raise ArgumentError(
                f"{self._name} reads tensors that it closes over; {taken[0]} is not for such a "
                "function\n  close over settings, and leave memory to be donated to us"
            )
        jit = {**self._options.jit, "donate_argnums": 0}
        health = labels if self.tells_health else None
        return type(self)(fun, replace(self._options, jit=jit, health=health))

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

    def _as_planned(self, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        """Lower the program as it stands; a plan that is not settled stays so."""
        built = self._program(args, kwargs)
        if not built.open:
            return self._lower_by_jax(self._jit, built, args, kwargs)
        try:
            return self._inner.lower(*args, **kwargs)
        finally:
            self._finish()

    def _lower_by_jax(
        self, jit: Any, built: Built, args: Sequence[Any], kwargs: dict[str, Any]
    ) -> Any:
        try:
            with built.held():
                return jit.lower(*args, **kwargs)
        finally:
            self._finish()

    def _compile(self, args: Sequence[Any], kwargs: dict[str, Any]) -> Compiled:
        built = self._program(args, kwargs)
        with self._explained(args, kwargs), built.lock:
            executable = self._settle(built, args, kwargs)
            stages, plan = built.stages, built.plan

        def exhausted(error: Exception, leaves: Sequence[Any]) -> Exception:
            return out_of_memory(self._fun, error, built, leaves, self._options)

        def export(platforms: Sequence[str] | None) -> Exported:
            return self._exported(args, kwargs, platforms)

        guard = self._guard(built)
        return Compiled(executable, stages, plan, exhausted, export, guard)

    def _exported(
        self, args: Sequence[Any], kwargs: dict[str, Any], platforms: Sequence[str] | None
    ) -> Exported:
        """Export the program as it stands; a plan that is not settled stays so."""
        built = self._program(args, kwargs)
        jit, (dynamic, _) = self._options.jit, self._arguments.divide(args, kwargs)
        try:
            with built.held():
                return exported_of(
                    self._inner if built.open else self._jit,
                    built.program,
                    (args, kwargs),
                    dynamic,
                    sorted(built.donated),
                    built.plan,
                    jit["compiler_options"],
                    platforms,
                    (jit.get("in_shardings"), jit.get("out_shardings")),
                )
        finally:
            self._finish()

    def _guard(self, built: Built) -> Guard | None:
        """What looks at the results of a program, where something does."""
        return None

    def _awaited(self, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        """Call for the first time; wait, so that it is us who tells that memory ran out."""
        out = CompiledFunction.__call__(self, *args, **kwargs)
        with self._explained(args, kwargs):
            return out if holds_tracers(args, kwargs) else jax.block_until_ready(out)

    @contextmanager
    def _explained(self, args: Sequence[Any], kwargs: dict[str, Any]) -> Iterator[None]:
        """Explain that memory ran out."""
        try:
            yield
        except jax.errors.JaxRuntimeError as error:
            if isinstance(error, BackpassError) or not is_exhausted(error):
                raise
            raise self._exhausted(args, kwargs, error) from error

    def _weigh(self, args: Sequence[Any], kwargs: dict[str, Any]) -> None:
        """Warn, once for each program, where it is predicted to need more than what is free.

        Not of one that is a part of another, or that is spread over several devices.
        """
        built = self._program(args, kwargs)
        weighed, built.weighed = built.weighed, True
        shardings = (self._options.jit.get(f"{way}_shardings") for way in ("in", "out"))
        spread = any(shardings) or built.program.signature.placed
        if weighed or spread or holds_tracers(args, kwargs):
            return
        if may_be_short(built.stages[-1].graph):
            warn_of_memory(self._fun, built, self._leaves(args, kwargs), self._options)

    def _exhausted(
        self, args: Sequence[Any], kwargs: dict[str, Any], error: Exception
    ) -> Exception:
        """Explain that a call ran out of memory, if its program is known."""
        built = self._programs.get(self._arguments.signature(args, kwargs))
        if built is None:
            return error
        leaves = self._leaves(args, kwargs)
        return out_of_memory(self._fun, error, built, leaves, self._options)

    def _leaves(self, args: Sequence[Any], kwargs: dict[str, Any]) -> list[Any]:
        """The array leaves of a call."""
        dynamic, _ = self._arguments.divide(args, kwargs)
        return jax.tree.leaves(dynamic)

    def _dump(self, built: Built) -> None:
        """Write the stages where `BACKPASS_DUMP` says, once for each program."""
        with self._lock:
            dumped, built.dumped = built.dumped, True
        if not dumped:
            dump_by_environment(built.program, built.stages)

    def _settle(self, built: Built, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        """Settle the plan, then dump it, also where none fits; gives the executable.

        For the thread that has the lock of `built`.
        """
        try:
            self._weigh(args, kwargs)
            if built.refusal is not None:
                raise built.refusal
            if built.open:
                return self._planned(built, args, kwargs)
            return self._executable(self._jit, built, args, kwargs)
        finally:
            self._dump(built)

    def _planned(self, built: Built, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        """Compile, and plan again until XLA's peak is within the budget; gives the executable.

        Each candidate is bound by a function of JAX's of its own, where no other thread can come
        upon one that does not fit. That of the settled one serves all calls from then on, but
        where others serve already: those would have to be compiled again.
        """
        search = built.fitting
        assert search is not None
        made: dict[Planned, tuple[Any, Any]] = {}
        while True:
            jit = self._fresh_jit()
            executable = self._executable(jit, built, args, kwargs)
            made[search.candidate] = jit, executable
            try:
                with self._history.timed(built.key, "planning"):
                    settled = search.measure(peak_bytes(executable.memory_analysis()))
            except BudgetError as error:
                if not self._divided_further(built):
                    built.refusal = error
                    raise
                search, settled = built.fitting, False
                assert search is not None
            if settled:
                break
        jit, executable = made[search.candidate]
        with self._lock:
            if all(each.open for each in self._programs.values()):
                self._jit = jit
            built.open = False
        return executable

    def _divided_further(self, built: Built) -> bool:
        """Have a program that fits in no way run in more parts, where that is left to us."""
        steps = 2 * (built.steps or 1)
        if self._options.accumulate_steps != AUTO or steps > MOST:
            return False
        try:
            found = fitted(built.program, self._options, built.donated, steps)
        except BatchError:
            return False
        built.steps, built.passed, built.fitting = found.steps, found.stages, found.search
        return True

    def _executable(
        self, jit: Any, built: Built, args: Sequence[Any], kwargs: dict[str, Any]
    ) -> Any:
        """Compile a program as it stands."""
        lowered = self._lower_by_jax(jit, built, args, kwargs)
        self._watches[threading.get_ident()] = Watch(self._name), built.key
        try:
            return lowered.compile()
        finally:
            self._finish(compiles=True)

    def _fresh_jit(self) -> Any:
        options = self._options.for_jit
        if self._options.planning.active:
            options = {**options, "compiler_options": obeyed(options["compiler_options"])}
        return jax.jit(self._staged(), **options)

    @functools.cached_property
    def _inner(self) -> Any:
        """What runs inside a program that somebody else compiles: planned, but not measured."""
        return jax.jit(self._staged(inner=True), **self._options.for_jit)

    def _staged(self, *, inner: bool = False) -> Callable[..., Any]:
        """Return the function that `jax.jit` traces when it meets a new signature."""

        @functools.wraps(self._fun)
        def staged(*args: Any, **kwargs: Any) -> Any:
            if not inner and jax.device_count() > 1:
                if self._arguments.signature(args, kwargs) not in self._specs:
                    raise Unplaced
            with collection_paused():
                built = self._program(args, kwargs)
                program = built.program
                held = inner or built.holder == threading.get_ident()
                if built.open and not held:
                    raise Unsettled
                if not (held or built.weighed or program.holds_tracers):
                    if may_be_short(built.stages[-1].graph):
                        raise Unweighed
                if built.fitting is None:
                    self._dump(built)
                dynamic, _ = self._arguments.divide(args, kwargs)
                call = lowered(built.stages[-1].graph, program.out_types)
                with self._history.timed(built.key, "binding"):
                    outs = call(*jax.tree.leaves(dynamic))
            thread = threading.get_ident()
            if thread not in self._watches:
                self._watches[thread] = Watch(self._name), built.key
            return jax.tree.unflatten(jax.tree.structure(program.out_shapes), outs)

        return staged

    def _program(self, args: Sequence[Any], kwargs: dict[str, Any]) -> Built:
        """Return the program for these arguments' signature, traced once for each.

        Where threads trace one at the same time, that of the first to finish is everybody's.
        """
        signature = self._arguments.signature(args, kwargs)
        found = self._programs.get(signature)
        if found is None:
            made = self._traced(args, kwargs, self._specs.get(signature, ()))
            with self._lock:
                found = self._programs.get(signature)
                if found is None:
                    found = made
                    self._record(found)
                    if not found.program.holds_tracers:
                        self._programs[signature] = found
        return found

    def _traced(
        self, args: Sequence[Any], kwargs: dict[str, Any], specs: tuple[Spec, ...]
    ) -> Built:
        """Trace, run the passes, and begin the search for a plan."""
        program = trace_program(self._arguments, self._name, args, kwargs, specs)
        if not self._told_captured:
            self._told_captured = warn_of_captured(self._fun, program.graph)
        check_results_even(self._fun, program.out_shapes, self._options.jit.get("out_shardings"))
        options = self._options
        if options.health is not None:
            program = with_health(program, options.health)
        donated = frozenset(self._donated(args, kwargs))
        found = fitted(program, options, donated)
        if options.debug == "strict":
            forbid(found.stages[-1].graph)
        fit = found.search
        built = Built(program, found.stages, object(), donated, fit, open=fit is not None)
        built.steps = found.steps
        return built

    def _record(self, built: Built) -> None:
        """Tell the history of a new program."""
        self._history.record(built.key, built.program, built.passed, self._calls)
        if built.fitting is not None:
            self._history.add(built.key, "planning", built.fitting.seconds)
            if built.fitting.recalled:
                self._history.recall(built.key)

    def _at(self, args: Sequence[Any], kwargs: dict[str, Any]) -> CompiledFunction:
        """Return the function for arguments that lie as these do: this one, or another like it.

        `jax.jit` knows programs by shapes alone, and compiles one for each way that arguments lie;
        a plan holds for one way.
        """
        signature = self._arguments.signature(args, kwargs)
        specs = self._placement(args, kwargs)
        self._by_place = self._options.planning.active and jax.device_count() > 1
        with self._lock:
            if self._specs.setdefault(signature, specs) == specs:
                return self
            self._elsewhere.setdefault(self._specs[signature], self)
            if specs not in self._elsewhere:
                other = type(self)(self._fun, self._options)
                other._history, other._elsewhere = self._history, self._elsewhere
                other._lock = self._lock
                self._elsewhere[specs] = other
            return self._elsewhere[specs]

    def _placement(self, args: Sequence[Any], kwargs: dict[str, Any]) -> tuple[Spec, ...]:
        return placement(self._arguments, args, kwargs, self._options.jit.get("in_shardings"))

    def _donated(self, args: Sequence[Any], kwargs: dict[str, Any]) -> list[int]:
        """Positions of the array leaves whose buffers the outputs may take over."""
        away = self._donates
        (positional, named), _ = self._arguments.divide(args, kwargs)
        groups = [(i in away.static_positions, x) for i, x in positional.items()]
        groups += [(k in away.static_names, named[k]) for k in sorted(named)]
        flags = [donated for donated, tree in groups for _ in jax.tree.leaves(tree)]
        return [i for i, donated in enumerate(flags) if donated]

    def _finish(self, *, compiles: bool = False) -> None:
        """Stop the watch of this thread; its time goes to the trace that it was set for."""
        if found := self._watches.pop(threading.get_ident(), None):
            watch, key = found
            self._history.add(key, "compiling", watch.stop(), int(compiles))

    def __repr__(self) -> str:
        """Name and place of the function."""
        return f"<backpass.compile {defined_at(self._fun)}>"
