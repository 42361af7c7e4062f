"""The stages of ahead-of-time compilation: traced, lowered, compiled."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import jax

from ..ir.errors import BackpassError
from ..ir.graph import Graph
from ..ir.page import summary_html
from ..passes import Fusions, Stage
from .collectives import Collectives, collectives_of
from .diagnose import is_exhausted
from .dump import write_dump, write_text
from .exported import Exported
from .fallback import Fallback, fallbacks
from .memory_plan import MemoryPlan
from .nonfinite import Guard
from .page import page
from .program import Program
from .summary import Summary, summarise


@dataclass(frozen=True)
class Traced:
    """A function traced and imported; nothing has been rewritten yet."""

    _program: Program
    _lower: Callable[[], Lowered]

    @property
    def graph(self) -> Graph:
        """The program as imported."""
        return self._program.graph

    @property
    def jaxpr(self) -> Any:
        """The jaxpr that JAX's staging gave."""
        return self._program.jaxpr

    @property
    def out_info(self) -> Any:
        """The outputs as a pytree of `jax.ShapeDtypeStruct`s."""
        return self._program.out_shapes

    def lower(self) -> Lowered:
        """Run the passes."""
        return self._lower()


@dataclass(frozen=True)
class Lowered:
    """A program after all passes; `stages` holds each step's graph.

    `plan` is the memory plan, where a budget was given; compiling may refine it. `donated` are
    positions of the graph's inputs whose buffers the outputs may take over; the batch runs in
    `accumulate_steps` parts, also where their number was left to us, or None.
    """

    _program: Program
    stages: tuple[Stage, ...]
    plan: MemoryPlan | None
    _by_jax: Callable[[], Any]
    _compile: Callable[[], Compiled]
    _export: Callable[[Sequence[str] | None], Exported]
    donated: tuple[int, ...] = ()
    accumulate_steps: int | None = None

    @property
    def graph(self) -> Graph:
        """The final graph, which is handed to XLA."""
        return self.stages[-1].graph

    @property
    def fallbacks(self) -> tuple[Fallback, ...]:
        """Where JAX's own derivative of one primitive stands in for a rule that we lack."""
        return fallbacks(self.graph)

    @cached_property
    def fusions(self) -> Fusions:
        """What rewrites matched, and near misses with their reasons; prints as lines."""
        return Fusions(fusion for stage in self.stages for fusion in stage.report())

    def __str__(self) -> str:
        """One line for each stage, then the rewrites and the fallbacks."""
        stages = [f"  {s.name}: {len(s.graph.nodes)} nodes, {s.seconds:.3f} s" for s in self.stages]
        listed = (
            [f"  in {self.accumulate_steps} parts of the batch"] if self.accumulate_steps else []
        )
        listed += [f"  {line}" for line in str(self.fusions).splitlines()]
        listed += [f"  fallback to JAX's derivative: {each}" for each in self.fallbacks]
        return "\n".join([f"{self._program.name}, lowered", *stages, *listed])

    @property
    def out_info(self) -> Any:
        """The outputs as a pytree of `jax.ShapeDtypeStruct`s."""
        return self._program.out_shapes

    @cached_property
    def _lowered(self) -> Any:
        return self._by_jax()

    def as_text(self, dialect: str = "backpass") -> str:
        """Return the program as text; `dialect` is `"backpass"` or one of JAX's: `"stablehlo"`."""
        return str(self.graph) if dialect == "backpass" else str(self._lowered.as_text(dialect))

    def cost_analysis(self) -> Any:
        """Return XLA's own cost estimate of the unoptimised program."""
        return self._lowered.cost_analysis()

    def compile(self) -> Compiled:
        """Compile for the devices at hand. Raises `BudgetError` when no plan fits the budget."""
        return self._compile()

    def export(self, platforms: Sequence[str] | None = None) -> Exported:
        """Return the program for processes without its Python code, and for `Exported.save`.

        Under a budget it has the plan as predicted; `compile().export()` has it as measured here.

        Args:
            platforms: `"cpu"`, `"cuda"`, `"rocm"`, `"tpu"`; by default where we are.

        Raises:
            ExportError: the program calls back into Python, or JAX can't write it.
        """
        return self._export(platforms)

    def summary(self, depth: int = 2) -> Summary:
        """Return parameters, FLOPs and bytes by layer: the first `depth` parts of the scopes."""
        return summarise(self.stages, depth)

    def dump(self, directory: str | Path, *, hlo: bool = False) -> list[Path]:
        """Write every stage, exports of the last and a manifest; returns the paths.

        An earlier dump in `directory` is replaced. With `hlo` the program is compiled, and XLA's
        optimised HLO is written too. Raises `DumpError`.
        """
        return write_dump(self, Path(directory), hlo)

    def to_html(self, path: str | Path) -> None:
        """Write one self-contained HTML page of all stages and of the plan. Raises `DumpError`."""
        write_text(Path(path), page(self))

    def _repr_html_(self) -> str:
        """Figures and a small picture of the final graph, for notebooks."""
        return summary_html(self.graph, self.donated)

    def __treescope_repr__(self, path: str | None, subtree_renderer: Any) -> Any:
        """Stages, layers, what was rewritten and planned, and the final graph, for Treescope."""
        from ..ir.treescope_view import fold, graph_view, text_lines

        told = {
            "stages": str(self).partition("\n")[2],
            "layers": str(self.summary()),
            "plan": "" if self.plan is None else str(self.plan),
        }
        folds = [fold(name, text_lines(text)) for name, text in told.items() if text]
        last = graph_view(self.graph, None if path is None else f"{path}.graph", "final graph")
        return fold(f"Lowered {self._program.name}", [*folds, last], path, opened=True)


@dataclass(frozen=True)
class Compiled:
    """An executable for one signature; the batch runs in `accumulate_steps` parts, or None."""

    _compiled: Any
    stages: tuple[Stage, ...]
    plan: MemoryPlan | None
    _exhausted: Callable[[Exception, Sequence[Any]], Exception]
    _export: Callable[[Sequence[str] | None], Exported]
    _guard: Guard | None = None
    accumulate_steps: int | None = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run on arguments of the signature that it was compiled for, static ones left out."""
        try:
            if self._guard is None:
                return self._compiled(*args, **kwargs)
            return self._guard(self._compiled, args, kwargs)
        except jax.errors.JaxRuntimeError as error:
            if isinstance(error, BackpassError) or not is_exhausted(error):
                raise
            raise self._exhausted(error, jax.tree.leaves((args, kwargs))) from error

    def as_text(self) -> str:
        """Return XLA's optimised HLO."""
        return str(self._compiled.as_text())

    def export(self, platforms: Sequence[str] | None = None) -> Exported:
        """Return the program and its plan for processes without its code: `Lowered.export`."""
        return self._export(platforms)

    @cached_property
    def collectives(self) -> Collectives:
        """What devices tell each other in a step, with bytes, mesh axes, phase and line."""
        return collectives_of(self.as_text(), self._compiled, self.stages[-1].graph)

    def memory_analysis(self) -> Any:
        """Return XLA's report: argument, output, temporary and aliased bytes."""
        return self._compiled.memory_analysis()

    def cost_analysis(self) -> Any:
        """Return XLA's cost estimate of the optimised program."""
        return self._compiled.cost_analysis()
