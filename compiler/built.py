"""One program of a compiled function, on its way from the graph to an executable."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from ..ir.errors import BudgetError
from ..ir.graph import Graph
from ..ir.liveness import Liveness, liveness
from ..passes import Stage
from .budget import Fitting
from .fitted import Stages, forms_of, graphs_of
from .memory_plan import MemoryPlan
from .nonfinite import Guard
from .options import Options
from .program import Program


class Unsettled(Exception):
    """A program that has a budget was asked for before its plan was settled."""


class Unplaced(Exception):
    """A program was asked for before it was told how its arguments lie on a mesh of devices."""


class Unweighed(Exception):
    """A large program was asked for before its memory was compared with what is free."""


@dataclass
class Built:
    """A program, the forms that the passes made of it, and the search for its plan.

    While `open`, the program must not be bound: no plan has been tried, or none fits and
    `refusal` tells so. `key` is that of its trace in the history, `donated` are positions of
    inputs; `weighed` tells that its memory was compared with what is free. `lock` is for the
    thread that searches; the `holder` may bind a program that is open or not weighed.
    It runs in `steps` parts of its batch.
    """

    program: Program
    forms: tuple[Stages, ...]
    key: object
    donated: frozenset[int]
    fitting: Fitting | None = None
    open: bool = False
    refusal: BudgetError | None = None
    dumped: bool = False
    weighed: bool = False
    guard: Guard | None = None
    lock: Any = field(default_factory=threading.RLock, repr=False)
    holder: int | None = None
    steps: int | None = None

    @contextmanager
    def held(self) -> Iterator[None]:
        """Let this thread bind the program as it stands."""
        with self.lock:
            before, self.holder = self.holder, threading.get_ident()
            try:
                yield
            finally:
                self.holder = before

    @property
    def stages(self) -> Stages:
        """The stages, that of the plan last."""
        if self.fitting is None:
            return self.forms[0]
        candidate = self.fitting.candidate
        planned = Stage("rematerialise", candidate.graph, self.fitting.seconds)
        return (*self.forms[candidate.form], planned)

    def graphs(self, options: Options) -> list[Graph]:
        """What a planner may start from, also where no plan was asked for."""
        if self.fitting is not None:
            return graphs_of(self.forms)
        return graphs_of(forms_of(self.program, options, self.forms[0]))

    @property
    def plan(self) -> MemoryPlan | None:
        """The plan as it stands, where there is one."""
        return None if self.fitting is None else self.fitting.plan

    @property
    def live(self) -> Liveness:
        """What is predicted to be in memory."""
        if self.fitting is not None:
            return self.fitting.candidate.live
        return liveness(self.stages[-1].graph, self.donated, fused=True)
