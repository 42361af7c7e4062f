"""The function that `bp.compile(debug="nan")` makes."""

from __future__ import annotations

from typing import Any

from ..ir.jax_compat import is_part
from .built import Built
from .function import CompiledFunction
from .nonfinite import Guard, copied, not_finite


class GuardedFunction(CompiledFunction):
    """Looks at what each call returns; what is donated are copies. Raises `NonFiniteError`."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the step and look at what it returns, where that has numbers yet."""
        if self._by_state is not None or is_part():
            return super().__call__(*args, **kwargs)
        away = self._asked.donates
        given = [copied(x) if i in away.static_positions else x for i, x in enumerate(args)]
        named = {k: copied(x) if k in away.static_names else x for k, x in kwargs.items()}
        out = super().__call__(*given, **named)
        if self._by_state is None and (bad := not_finite(out)):
            guard = self._guard(self._programs.of(args, kwargs))
            guard.check(bad, self._asked.leaves(args, kwargs))
        return out

    def _guard(self, built: Built) -> Guard:
        with self._lock:
            if built.guard is None:
                built.guard = Guard(
                    built.program,
                    self._asked.options.casts,
                    lambda: built.stages[-1].graph,
                    built.donated,
                    self._asked.options.planning,
                    self._asked.options.jit["compiler_options"],
                )
            return built.guard
