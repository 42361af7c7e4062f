"""A program as a Chrome trace, which Perfetto and chrome://tracing open.

Two processes: `compile` has the seconds of tracing and of each pass as nested slices; `step` runs
in program order, one microsecond a node, with the predicted live bytes as counters.

Source: "Trace Event Format", Google: complete events `X`, counters `C`, metadata `M`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from ..ir.liveness import liveness

if TYPE_CHECKING:
    from .stages import Lowered

_COMPILE, _STEP = 1, 2
Event = dict[str, Any]


def chrome_trace(lowered: Lowered) -> str:
    """JSON text of the trace, in its object form."""
    events = [
        *_names(_COMPILE, "compile", "passes"),
        *_passes(lowered),
        *_names(_STEP, "step, a node a microsecond", "nodes"),
        *_nodes(lowered),
        *_memory(lowered),
    ]
    trace = {"traceEvents": events, "displayTimeUnit": "ms"}
    return json.dumps(trace, separators=(",", ":"))


def _names(process: int, name: str, thread: str) -> Iterator[Event]:
    for what, named in (("process_name", name), ("thread_name", thread)):
        yield {"ph": "M", "name": what, "pid": process, "tid": 1, "args": {"name": named}}


def _slice(process: int, name: str, start: float, length: float, **args: Any) -> Event:
    return {
        "ph": "X",
        "name": name,
        "pid": process,
        "tid": 1,
        "ts": start,
        "dur": length,
        "args": args,
    }


def _passes(lowered: Lowered) -> Iterator[Event]:
    """Slice of the whole, of tracing, and of the passes around each; microseconds.

    They are whole, so that sums are exact and slices end where the next begins.
    """
    traced, *passes = lowered.stages
    lengths = [round(1e6 * stage.seconds) for stage in passes]
    first, total = round(1e6 * traced.seconds), sum(lengths)
    yield _slice(_COMPILE, f"lower {lowered.graph.name}", 0, first + total)
    yield _slice(_COMPILE, traced.name, 0, first, nodes=len(traced.graph.nodes))
    yield _slice(_COMPILE, "passes", first, total)
    start = first
    for stage, length in zip(passes, lengths, strict=True):
        yield _slice(_COMPILE, stage.name, start, length, nodes=len(stage.graph.nodes))
        start += length


def _nodes(lowered: Lowered) -> Iterator[Event]:
    for i, node in enumerate(lowered.graph.nodes):
        types = ", ".join(str(value.type) for value in node.outputs)
        place = {"line": node.source, "scope": node.scope}
        args = {"phase": node.phase, "types": types, **{k: v for k, v in place.items() if v}}
        yield _slice(_STEP, node.op.name, i, 1, **args)


def _memory(lowered: Lowered) -> Iterator[Event]:
    live = liveness(lowered.graph, lowered.donated, fused=True)
    for i, (total, temporary) in enumerate(zip(live.bytes, live.temporary_bytes, strict=True)):
        held = {"arguments and outputs": total - temporary, "temporaries": temporary}
        yield {"ph": "C", "name": "live bytes", "pid": _STEP, "ts": i, "args": held}
