"""Graphs as files."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from ..ir.graph import Graph
from ..passes import Stage

FORMATS: Mapping[str, tuple[str, Callable[[Graph], str]]] = {
    "text": (".txt", str),
    "dot": (".dot", Graph.to_dot),
}


def write_stages(stages: Sequence[Stage], directory: Path) -> list[Path]:
    """Write each stage as `NNN_name.txt`, and the last one as `graph.dot`; returns the paths."""
    directory.mkdir(parents=True, exist_ok=True)
    paths = []
    for i, stage in enumerate(stages):
        paths.append(directory / f"{i:03d}_{stage.name}.txt")
        paths[-1].write_text(str(stage.graph), encoding="utf-8")
    paths.append(directory / "graph.dot")
    paths[-1].write_text(stages[-1].graph.to_dot(), encoding="utf-8")
    return paths
