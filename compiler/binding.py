"""How programs are bound to `jax.jit`, compiled, and planned until a budget holds."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import jax

from ..ir.errors import BatchError, BudgetError
from ..ir.jax_compat import is_part
from ..ir.verifier import verify
from ..passes.rematerialise import Planned
from ..runtime.lower import lowered
from ..runtime.progress import Watch
from ..runtime.xla import chosen
from .budget import peak_bytes
from .built import Built, Unplaced, Unsettled, Unweighed
from .dump import dump_by_environment
from .exported import Exported, exported_of
from .fitted import MOST, fitted
from .headroom import may_be_short, warn_of_memory
from .options import AUTO
from .program import collection_paused
from .programs import Programs


class Binding:
    """The functions of `jax.jit` that run programs: `jit` serves calls.

    JAX keeps an executable for each signature there, and comes back to `_staged` for a new one.
    """

    def __init__(self, programs: Programs) -> None:
        """Bind nothing yet."""
        self._programs = programs
        self._asked = programs.asked
        self._history = programs.history
        self.watches: dict[int, tuple[Watch, object]] = {}  # what each thread compiles
        # What runs inside a program that somebody else compiles: planned, but not measured.
        self.inner = jax.jit(self._staged(inner=True), **self._asked.options.for_jit)

    @functools.cached_property
    def jit(self) -> Any:
        """What runs by itself; made when it is called, as its options depend on the backend."""
        return self._fresh_jit()

    def lower(self, built: Built, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        """Lower the program as it stands; a plan that is not settled stays so."""
        if not built.open:
            return self._lower(self.jit, built, args, kwargs)
        with self._timed():
            return self.inner.lower(*args, **kwargs)

    def export(
        self,
        built: Built,
        args: Sequence[Any],
        kwargs: dict[str, Any],
        platforms: Sequence[str] | None,
    ) -> Exported:
        """Export the program as it stands; a plan that is not settled stays so."""
        jit, (dynamic, _) = self._asked.options.jit, self._asked.arguments.divide(args, kwargs)
        with self._timed(), built.held():
            return exported_of(
                self.inner if built.open else self.jit,
                built.program,
                (args, kwargs),
                dynamic,
                sorted(built.donated),
                built.plan,
                jit["compiler_options"],
                platforms,
                (jit.get("in_shardings"), jit.get("out_shardings")),
            )

    def weigh(self, args: Sequence[Any], kwargs: dict[str, Any]) -> None:
        """Warn, once for each program, where it is predicted to need more than what is free.

        Not of one that is a part of another, or that is spread over several devices.
        """
        built = self._programs.of(args, kwargs)
        weighed, built.weighed = built.weighed, True
        options = self._asked.options
        shardings = (options.jit.get(f"{way}_shardings") for way in ("in", "out"))
        spread = any(shardings) or built.program.signature.placed
        if weighed or spread or is_part():
            return
        if may_be_short(built.stages[-1].graph):
            warn_of_memory(self._asked.fun, built, self._asked.leaves(args, kwargs), options)

    def settle(self, built: Built, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        """Settle the plan, then dump it, also where none fits; gives the executable.

        For the thread that has the lock of `built`.
        """
        try:
            self.weigh(args, kwargs)
            if built.refusal is not None:
                raise built.refusal
            if built.open:
                return self._planned(built, args, kwargs)
            return self._executable(self.jit, built, args, kwargs)
        finally:
            self._dump(built)

    def finish(self, *, compiles: bool = False) -> None:
        """Stop the watch of this thread; its time goes to the trace that it was set for."""
        if found := self.watches.pop(threading.get_ident(), None):
            watch, key = found
            self._history.add(key, "compiling", watch.stop(), int(compiles))

    @contextmanager
    def _timed(self) -> Iterator[None]:
        """Stop the watch when a block ends."""
        try:
            yield
        finally:
            self.finish()

    def _lower(self, jit: Any, built: Built, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        with self._timed(), built.held():
            return jit.lower(*args, **kwargs)

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
            if self._asked.options.debug:
                verify(search.candidate.graph)
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
        with self._programs.lock:
            if self._programs.are_open:
                self.jit = jit
            built.open = False
        return executable

    def _divided_further(self, built: Built) -> bool:
        """Have a program that fits in no way run in more parts, where that is left to us."""
        steps = 2 * (built.steps or 1)
        if self._asked.options.accumulate_steps != AUTO or steps > MOST:
            return False
        try:
            found = fitted(built.program, self._asked.options, built.donated, steps)
        except BatchError:
            return False
        built.steps, built.forms, built.fitting = found.steps, found.forms, found.search
        return True

    def _executable(
        self, jit: Any, built: Built, args: Sequence[Any], kwargs: dict[str, Any]
    ) -> Any:
        """Compile a program as it stands."""
        lowered = self._lower(jit, built, args, kwargs)
        self._watch(built)
        try:
            return lowered.compile()
        finally:
            self.finish(compiles=True)

    def _watch(self, built: Built) -> None:
        """Begin to tell how long this thread compiles."""
        self.watches[threading.get_ident()] = Watch(self._asked.name), built.key

    def _dump(self, built: Built) -> None:
        """Write the stages where `BACKPASS_DUMP` says, once for each program."""
        with self._programs.lock:
            dumped, built.dumped = built.dumped, True
        if not dumped:
            dump_by_environment(built.program, built.stages)

    def _fresh_jit(self) -> Any:
        options = self._asked.options.for_jit
        planned = self._asked.options.planning.active
        xla = chosen(options["compiler_options"], planned=planned)
        return jax.jit(self._staged(), **{**options, "compiler_options": xla})

    def _staged(self, *, inner: bool = False) -> Callable[..., Any]:
        """Return the function that `jax.jit` traces when it meets a new signature."""

        @functools.wraps(self._asked.fun)
        def staged(*args: Any, **kwargs: Any) -> Any:
            several = not inner and jax.device_count() > 1
            if several and not self._programs.knows_place(args, kwargs):
                raise Unplaced
            with collection_paused():
                built = self._programs.of(args, kwargs)
                program = built.program
                held = inner or built.holder == threading.get_ident()
                if built.open and not held:
                    raise Unsettled
                if not (held or built.weighed or program.holds_tracers):
                    if may_be_short(built.stages[-1].graph):
                        raise Unweighed
                if built.fitting is None:
                    self._dump(built)
                call = lowered(built.stages[-1].graph, program.out_types)
                with self._history.timed(built.key, "binding"):
                    outs = call(*self._asked.leaves(args, kwargs))
            if threading.get_ident() not in self.watches:
                self._watch(built)
            return jax.tree.unflatten(jax.tree.structure(program.out_shapes), outs)

        return staged
