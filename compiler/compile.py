"""`bp.compile`: the decorator, and the function that it makes."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, overload

import jax

from ..ir.errors import ArgumentError, BudgetError
from ..ir.graph import Graph
from ..passes import (
    PASSES,
    Fuse,
    Pass,
    Restack,
    Stage,
    Unroll,
    default,
    parse_pipeline,
)
from ..passes.rematerialise import Planned
from ..runtime.device import row_of
from ..runtime.lower import lowered
from ..runtime.progress import Watch
from .budget import Fitting, Planning, obeyed, parse_bytes, peak_bytes
from .diagnose import caller_line, defined_at, explain_failure
from .dump import dump_by_environment
from .explain import Explanation, History
from .fallback import forbid
from .health import with_health
from .memory_plan import MemoryPlan
from .program import Arguments, Program, collection_paused, trace_program
from .stages import Compiled, Lowered, Traced
from .state import Stateful

Names = str | Iterable[str] | None
Numbers = int | Sequence[int] | None


def _holds_tracers(args: Sequence[Any], kwargs: dict[str, Any]) -> bool:
    """True inside a program that somebody else compiles, where JAX refuses XLA's options."""
    return any(isinstance(x, jax.core.Tracer) for x in jax.tree.leaves((args, kwargs)))


class _Unsettled(Exception):
    """A program that has a budget was asked for before its plan was settled."""


@dataclass
class Built:
    """A program, what the passes made of it, and the search for its plan.

    While `open`, the program must not be bound: no plan has been tried, or none fits and
    `refusal` tells so.
    """

    program: Program
    passed: tuple[Stage, ...]
    fitting: Fitting | None = None
    open: bool = False
    refusal: BudgetError | None = None
    dumped: bool = False

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The stages, that of the plan last."""
        if self.fitting is None:
            return self.passed
        candidate = self.fitting.candidate
        return (*self.passed, Stage("rematerialise", candidate.graph, self.fitting.seconds))

    @property
    def plan(self) -> MemoryPlan | None:
        """The plan as it stands, where there is one."""
        return None if self.fitting is None else self.fitting.plan


class CompiledFunction:
    """A function that runs as one optimised XLA program for each signature of its arguments.

    A call goes straight to `jax.jit`'s own path. Only when that has no program for a signature
    does it come back to be traced, differentiated, rewritten and bound.
    """

    def __init__(
        self,
        fun: Callable[..., Any],
        passes: Sequence[Pass] | None,
        debug: bool | str,
        max_traces: int | None,
        planning: Planning,
        jit_options: dict[str, Any],
        health: Mapping[str, str] | None = None,
    ) -> None:
        """Made by `compile`, where the arguments are explained.

        With `health`, new names of parameters by their paths, a `Health` is returned as well.
        """
        functools.update_wrapper(self, fun)
        self._fun = fun
        self._name = getattr(fun, "__name__", type(fun).__name__)
        self._passes = passes
        self._debug = debug
        self._arguments = _arguments(fun, jit_options)
        self._history = History(self._name, max_traces)
        self._planning = replace(planning, options=repr(sorted(jit_options.items())))
        self._programs: dict[Any, Built] = {}
        self._watch: Watch | None = None
        self._jit_options = jit_options
        self._health = health
        self._by_state: Any = None
        self._jit = self._fresh_jit()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the step. Arguments that were donated must not be used again."""
        if self._by_state is not None:
            return self._by_state(*args, **kwargs)
        try:
            return self._jit(*args, **kwargs)
        except Stateful as met:
            self._by_state = met.build(self)
            return self._by_state(*args, **kwargs)
        except _Unsettled:
            self._settle(args, kwargs)
            return self(*args, **kwargs)
        except Exception as error:
            if self._planning.active and _holds_tracers(args, kwargs):
                return self._inner(*args, **kwargs)
            arrays, static = self._arguments.listed(args, kwargs)
            explained = explain_failure(self._fun, error, arrays, static)
            if explained is error:
                raise
            raise explained from error
        finally:
            if self._watch is not None:
                self._finish()

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
        try:
            built = self._program(args, kwargs)
        except Stateful as met:
            self._by_state = met.build(self)
        if self._by_state is not None:
            return self._by_state.trace(*args, **kwargs)  # type: ignore[no-any-return]
        return Traced(built.program, lambda: self.lower(*args, **kwargs))

    def lower(self, *args: Any, **kwargs: Any) -> Lowered:
        """Trace, import and run the passes; see `Lowered`."""
        try:
            built = self._program(args, kwargs)
        except Stateful as met:
            self._by_state = met.build(self)
        if self._by_state is not None:
            return self._by_state.lower(*args, **kwargs)  # type: ignore[no-any-return]
        return Lowered(
            built.program,
            built.stages,
            built.plan,
            lambda: self._as_planned(args, kwargs),
            lambda: self._compile(args, kwargs),
            tuple(self._donated(args, kwargs)),
        )

    def joint(self, args: Sequence[Any], kwargs: dict[str, Any]) -> tuple[Graph, frozenset[int]]:
        """Return the graph that the planner gets, and the positions of its donated inputs."""
        built = self._program(args, kwargs)
        return built.passed[-1].graph, frozenset(self._donated(args, kwargs))

    def without_plan(
        self, passes: Any, usual: Sequence[Pass], options: dict[str, Any]
    ) -> CompiledFunction:
        """Return this function with no budget, and with other passes and options where given.

        `usual` are the passes where neither names any.
        """
        passes = passes or self._passes or usual
        health = self._health is not None
        return compile(self._fun, passes=passes, health=health, **{**self._jit_options, **options})

    @property
    def tells_health(self) -> bool:
        """True where a call returns `(result, Health)`."""
        return self._health is not None

    def of_state(self, fun: Callable[..., Any], labels: Mapping[str, str]) -> CompiledFunction:
        """Compile `fun` as this function was asked to be; its first argument is given away.

        `labels` are names that its arguments have for people, by their paths.
        """
        names = "static_argnums static_argnames donate_argnums donate_argnames in_shardings"
        mine = (*names.split(), "out_shardings")
        taken = [name for name in mine if self._jit_options.get(name) is not None]
        if taken:
            raise ArgumentError(
                f"{self._name} reads tensors that it closes over; {taken[0]} is not for such a "
                "function\n  close over settings, and leave memory to be donated to us"
            )
        options = {**self._jit_options, "donate_argnums": 0}
        limit = self._history.limit
        health = labels if self.tells_health else None
        return CompiledFunction(
            fun, self._passes, self._debug, limit, self._planning, options, health
        )

    def explain(self) -> Explanation:
        """Return the traces so far, why each happened, and the seconds of each phase."""
        if self._by_state is not None:
            return self._by_state.explain()  # type: ignore[no-any-return]
        return self._history.explanation()

    def _as_planned(self, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        """Lower the program as it stands; a plan that is not settled stays so."""
        if not self._program(args, kwargs).open:
            return self._lower_by_jax(args, kwargs)
        try:
            return self._inner.lower(*args, **kwargs)
        finally:
            self._finish()

    def _lower_by_jax(self, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        self._program(args, kwargs).open = False
        try:
            return self._jit.lower(*args, **kwargs)
        finally:
            self._finish()

    def _compile(self, args: Sequence[Any], kwargs: dict[str, Any]) -> Compiled:
        built = self._program(args, kwargs)
        executable = self._settle(args, kwargs)
        return Compiled(executable, built.stages, built.plan)

    def _dump(self, built: Built) -> None:
        """Write the stages where `BACKPASS_DUMP` says, once for each program."""
        if not built.dumped:
            built.dumped = True
            dump_by_environment(built.program, built.stages)

    def _settle(self, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        """Settle the plan, then dump it, also where none fits; gives the executable."""
        try:
            return self._settled(args, kwargs)
        finally:
            self._dump(self._program(args, kwargs))

    def _settled(self, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        """Compile, and plan again until XLA's peak is within the budget; gives the executable."""
        built = self._program(args, kwargs)
        search = built.fitting
        if built.refusal is not None:
            raise built.refusal
        made: dict[Planned, tuple[Any, Any]] = {}
        while True:
            executable = self._lower_by_jax(args, kwargs).compile()
            if search is None or search.settled:
                return executable
            made[search.candidate] = self._jit, executable
            try:
                settled = search.measure(peak_bytes(executable.memory_analysis()))
            except BudgetError as error:
                built.refusal, built.open = error, True
                self._jit = self._fresh_jit()
                raise
            if settled:
                self._jit, executable = made[search.candidate]
                return executable
            self._jit = self._fresh_jit()

    def _fresh_jit(self) -> Any:
        options = self._for_jit
        if self._planning.active:
            options = {**options, "compiler_options": obeyed(options["compiler_options"])}
        return jax.jit(self._staged(), **options)

    @functools.cached_property
    def _inner(self) -> Any:
        """What runs inside a program that somebody else compiles: planned, but not measured."""
        return jax.jit(self._staged(inner=True), **self._for_jit)

    @property
    def _for_jit(self) -> dict[str, Any]:
        """JAX's options: shardings are those of the result alone, where more is returned."""
        given = self._jit_options
        if self._health is None or given.get("out_shardings") is None:
            return given
        return {**given, "out_shardings": (given["out_shardings"], None)}

    def _staged(self, *, inner: bool = False) -> Callable[..., Any]:
        """Return the function that `jax.jit` traces when it meets a new signature."""

        @functools.wraps(self._fun)
        def staged(*args: Any, **kwargs: Any) -> Any:
            with collection_paused():
                built = self._program(args, kwargs)
                if built.open and not inner:
                    raise _Unsettled
                program = built.program
                if built.fitting is None:
                    self._dump(built)
                dynamic, _ = self._arguments.divide(args, kwargs)
                call = lowered(built.stages[-1].graph, program.out_types)
                with self._history.binding(program):
                    outs = call(*jax.tree.leaves(dynamic))
            if self._watch is None:
                self._watch = Watch(self._name)
            return jax.tree.unflatten(jax.tree.structure(program.out_shapes), outs)

        return staged

    def _program(self, args: Sequence[Any], kwargs: dict[str, Any]) -> Built:
        """Return the program for these arguments' signature, traced once for each."""
        signature = self._arguments.signature(args, kwargs)
        found = self._programs.get(signature)
        if found is None:
            program = trace_program(self._arguments, self._name, args, kwargs)
            if self._health is not None:
                program = with_health(program, self._health)
            stages = program.stages(self._pipeline, bool(self._debug))
            if self._debug == "strict":
                forbid(stages[-1].graph)
            fit = self._planning.fitting(stages[-1].graph, self._donated(args, kwargs))
            self._history.record(program, stages)
            found = Built(program, stages, fit, open=fit is not None)
            if not program.holds_tracers:
                self._programs[signature] = found
        return found

    @property
    def _pipeline(self) -> Sequence[Pass]:
        """The passes; by default what loops do and stack is chosen for speed, or by the planner."""
        passes = self._passes
        if passes is None:
            device = jax.devices()[0]
            passes = default(device.platform, planned=self._planning.active)
            if not self._planning.active:
                tiny = (Unroll(),) if device.platform == "cpu" else ()
                passes = (*passes, Restack(row_of(device)), *tiny)
        if self._debug != "verify-fusions":
            return passes
        return tuple(replace(p, verify=True) if isinstance(p, Fuse) else p for p in passes)

    def _donated(self, args: Sequence[Any], kwargs: dict[str, Any]) -> list[int]:
        """Positions of the array leaves whose buffers the outputs may take over."""
        numbers, names = self._jit_options["donate_argnums"], self._jit_options["donate_argnames"]
        given = _arguments(self._fun, {"static_argnums": numbers, "static_argnames": names})
        (positional, named), _ = self._arguments.divide(args, kwargs)
        groups = [(i in given.static_positions, x) for i, x in positional.items()]
        groups += [(k in given.static_names, named[k]) for k in sorted(named)]
        flags = [donated for donated, tree in groups for _ in jax.tree.leaves(tree)]
        return [i for i, donated in enumerate(flags) if donated]

    def _finish(self) -> None:
        watch, self._watch = self._watch, None
        if watch is not None:
            self._history.compiled(watch.stop())

    def __repr__(self) -> str:
        """Name and place of the function."""
        return f"<backpass.compile {defined_at(self._fun)}>"


@overload
def compile(fun: Callable[..., Any], **options: Any) -> CompiledFunction: ...


@overload
def compile(fun: None = None, **options: Any) -> Callable[..., CompiledFunction]: ...


def compile(
    fun: Callable[..., Any] | None = None,
    *,
    memory_budget: int | str | None = None,
    plan: MemoryPlan | None = None,
    passes: str | Sequence[Pass] | None = None,
    debug: bool | str | None = None,
    health: bool = False,
    max_traces: int | None = None,
    static_argnums: Numbers = None,
    static_argnames: Names = None,
    donate_argnums: Numbers = None,
    donate_argnames: Names = None,
    keep_unused: bool = False,
    compiler_options: dict[str, Any] | None = None,
    **shardings: Any,
) -> Any:
    """Compile a training function: trace, differentiate by our chain rules, rewrite, hand to XLA.

    Works as a decorator with and without parentheses. The function takes and returns pytrees. It
    is traced again when shapes, dtypes, the tree structure or a static argument change.

    Args:
        fun: a function of arrays, in ordinary `jax.numpy`; gradients by `bp.grad` inside.
        memory_budget: bytes, or a string such as `"600MiB"`, `"6GB"`, that bound arguments +
            outputs + temporaries - donated, as XLA reports them, on each device; `"auto"` is what
            the device has free. What does not fit is made again in the backward pass.
        plan: a plan that `Lowered.plan.save` wrote, to be followed as it is.
        passes: a pipeline such as `"canonicalise,autodiff,cse"` or a sequence of passes, in
            place of the default one.
        debug: verify the graph after every pass; `"strict"` also forbids `Lowered.fallbacks`,
            derivatives that are JAX's own for want of a rule, and `"verify-fusions"` compares each
            of `Lowered.fusions` with what it takes the place of, on random inputs.
        health: return `(result, bp.Health)`: norms of gradients, parameters and updates, zeros and
            non-finite elements, computed inside the step.
        max_traces: warn when the function has been traced more often than this.
        static_argnums: positions of arguments that are hashable settings of the program.
        static_argnames: their names.
        donate_argnums: positions of arguments whose buffers the outputs may take over.
        donate_argnames: their names.
        keep_unused: keep arguments that the function does not read.
        compiler_options: XLA's options, by name.
        shardings: `in_shardings` and `out_shardings`, as in `jax.jit`.

    Returns:
        A callable with `.trace`, `.lower` and `.explain`.

    Raises:
        ArgumentError: `fun` is no function, or an option is unknown.
        BudgetError: at the first call, when no schedule fits; `.minimum_bytes` would.
        MissingRuleError: at the first call, with `debug="strict"`.
        FusionError: at the first call, with `debug="verify-fusions"`.
    """
    if debug not in (None, True, False, "strict", "verify-fusions"):
        wanted = "a boolean, 'strict' or 'verify-fusions'"
        raise ArgumentError(f"debug wants {wanted}, got {debug!r}")
    if not isinstance(health, bool):
        raise ArgumentError(
            f"health wants True or False, got {health!r}\n  with True a call returns (result, "
            "bp.Health)"
        )
    unknown = sorted(shardings.keys() - {"in_shardings", "out_shardings"})
    if unknown:
        raise ArgumentError(f"compile has no option {unknown[0]!r}")
    options: dict[str, Any] = {
        "static_argnums": static_argnums,
        "static_argnames": static_argnames,
        "donate_argnums": donate_argnums,
        "donate_argnames": donate_argnames,
        "keep_unused": keep_unused,
        "compiler_options": compiler_options,
        **shardings,
    }
    pipeline = None if passes is None else _pipeline(passes)
    planning = Planning(None if memory_budget is None else parse_bytes(memory_budget), plan)

    def decorate(fun: Callable[..., Any]) -> CompiledFunction:
        if not callable(fun):
            raise ArgumentError(f"compile wants a function, got {type(fun).__name__}")
        names: dict[str, str] | None = {} if health else None
        return CompiledFunction(fun, pipeline, debug or False, max_traces, planning, options, names)

    return decorate if fun is None else decorate(fun)


def _pipeline(passes: Any) -> tuple[Pass, ...]:
    if isinstance(passes, str):
        return parse_pipeline(passes, PASSES)
    found = tuple(passes) if isinstance(passes, Iterable) else (passes,)
    if not all(map(callable, found)):
        raise ArgumentError(
            "passes wants a pipeline such as 'canonicalise,autodiff,cse' or a sequence of passes, "
            f"got {passes!r}\n  at {caller_line()}"
        )
    return found


def _arguments(fun: Callable[..., Any], options: dict[str, Any]) -> Arguments:
    """Which arguments are static, by position and by name, each implying the other."""
    numbers, names = options["static_argnums"], options["static_argnames"]
    by_number = {numbers} if isinstance(numbers, int) else set(numbers or ())
    by_name = {names} if isinstance(names, str) else set(names or ())
    try:
        parameters = list(inspect.signature(fun).parameters.values())
    except (TypeError, ValueError):
        parameters = []
    plain = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    by_number = {n % len(parameters) if n < 0 and parameters else n for n in by_number}
    for i, parameter in enumerate(parameters):
        if parameter.kind in plain and (i in by_number or parameter.name in by_name):
            by_number.add(i)
            by_name.add(parameter.name)
    return Arguments(fun, frozenset(by_number), frozenset(by_name))
