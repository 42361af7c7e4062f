"""The page as text: data, style and script in one file."""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from importlib.resources import files
from string import Template
from typing import Any, Protocol

from ..device import DEVICES, DeviceSpec
from ..graph import Graph
from .notebook import escaped
from .stages import program_data

_SCRIPTS = ("model.js", "tree.js", "lanes.js", "details.js", "timeline.js", "page.js")
_ESCAPES = {ord(c): f"\\u{ord(c):04x}" for c in "<>&"}


class StageLike(Protocol):
    """What is shown of a stage: `passes.Stage`, or `Shown`."""

    @property
    def name(self) -> str:
        """Name of the pass."""

    @property
    def graph(self) -> Graph:
        """The program after it."""

    @property
    def seconds(self) -> float:
        """Time it took."""


@dataclass(frozen=True, slots=True)
class Shown:
    """A graph by itself, as a stage."""

    name: str
    graph: Graph
    seconds: float = 0.0


def write_page(
    title: str,
    stages: Sequence[StageLike],
    *,
    device: DeviceSpec | None = None,
    donated: Collection[int] = (),
    figures: Mapping[str, int] | None = None,
    decisions: Sequence[Mapping[str, Any]] = (),
) -> str:
    """Text of the page of a program.

    `figures` are `budget`, `predicted` and `measured` bytes, those that are known; `decisions` are
    rows of a memory plan. Shares of time are those on `device`, a CPU where none is given.
    """
    data = program_data(stages, device or DEVICES["cpu"], donated)
    data |= {"title": title, "figures": dict(figures or {}), "decisions": list(decisions)}
    style, script = _asset("page.css"), "\n".join(map(_asset, _SCRIPTS))
    return Template(_asset("page.html")).substitute(
        title=escaped(title),
        policy=f"default-src 'none'; script-src {_hash(script)}; style-src {_hash(style)};"
        " base-uri 'none'; form-action 'none'",
        style=style,
        script=script,
        data=embedded(data),
    )


def embedded(data: Any) -> str:
    """JSON that may stand in a `<script>`: no text in it can end the element."""
    return json.dumps(data, separators=(",", ":")).translate(_ESCAPES)


def _asset(name: str) -> str:
    return (files(__package__) / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return f"'sha256-{b64encode(sha256(text.encode()).digest()).decode()}'"
