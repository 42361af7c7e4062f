"""The programs of a compiled function, by the signatures of its calls."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

from ..ir.types import Spec
from .arguments import Signature
from .asked import Asked
from .built import Built
from .captured import warn_of_captured
from .explain import History
from .fallback import forbid
from .fitted import fitted
from .headroom import out_of_memory
from .health import with_health
from .placement import check_results_even
from .program import trace_program


class Programs:
    """What was traced, each program once; told before of how arguments lie on a mesh."""

    def __init__(self, asked: Asked, history: History, lock: Any = None) -> None:
        """Start with none; `lock` is of these attributes, never held in a trace or compile."""
        self.asked = asked
        self.history = history
        self.lock = threading.RLock() if lock is None else lock
        self._built: dict[Signature, Built] = {}
        self._specs: dict[Signature, tuple[Spec, ...]] = {}
        self._told_captured = False

    def of(self, args: Sequence[Any], kwargs: dict[str, Any]) -> Built:
        """Return the program for these arguments' signature, traced once for each.

        Where threads trace one at the same time, that of the first to finish is everybody's.
        """
        signature = self.asked.arguments.signature(args, kwargs)
        found = self._built.get(signature)
        if found is None:
            made = self._traced(args, kwargs, self._specs.get(signature, ()))
            with self.lock:
                found = self._built.get(signature)
                if found is None:
                    found = made
                    self._record(found)
                    if not found.program.holds_tracers:
                        self._built[signature] = found
        return found

    def lying(self, signature: Signature, specs: tuple[Spec, ...]) -> tuple[Spec, ...]:
        """How arguments of this signature lie: as `specs` tell, or as was told before."""
        with self.lock:
            return self._specs.setdefault(signature, specs)

    def knows_place(self, args: Sequence[Any], kwargs: dict[str, Any]) -> bool:
        """True where it was told how arguments of this signature lie."""
        return self.asked.arguments.signature(args, kwargs) in self._specs

    @property
    def are_open(self) -> bool:
        """True while no plan is settled: nothing has been bound that others call."""
        return all(each.open for each in self._built.values())

    def exhausted(self, args: Sequence[Any], kwargs: dict[str, Any], error: Exception) -> Exception:
        """Explain that a call ran out of memory, if its program is known."""
        built = self._built.get(self.asked.arguments.signature(args, kwargs))
        if built is None:
            return error
        leaves = self.asked.leaves(args, kwargs)
        return out_of_memory(self.asked.fun, error, built, leaves, self.asked.options)

    def _traced(
        self, args: Sequence[Any], kwargs: dict[str, Any], specs: tuple[Spec, ...]
    ) -> Built:
        """Trace, run the passes, and begin the search for a plan."""
        fun, options = self.asked.fun, self.asked.options
        program = trace_program(self.asked.arguments, self.asked.name, args, kwargs, specs)
        if not self._told_captured:
            self._told_captured = warn_of_captured(fun, program.graph)
        check_results_even(fun, program.out_shapes, options.jit.get("out_shardings"))
        if options.health is not None:
            program = with_health(program, options.health)
        donated = self.asked.donated(args, kwargs)
        found = fitted(program, options, donated)
        if options.debug == "strict":
            forbid(found.forms[0][-1].graph)
        fit = found.search
        built = Built(program, found.forms, object(), donated, fit, open=fit is not None)
        built.steps = found.steps
        return built

    def _record(self, built: Built) -> None:
        """Tell the history of a new program."""
        self.history.record(built.key, built.program, built.forms)
        if built.fitting is not None:
            self.history.add(built.key, "planning", built.fitting.seconds)
            if built.fitting.recalled:
                self.history.recall(built.key)
