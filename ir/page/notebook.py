"""What a notebook shows of a graph: figures, and a small picture of its memory. No script."""

from __future__ import annotations

import html
from collections.abc import Collection, Mapping

from ..cost import cost
from ..graph import Graph
from ..liveness import Liveness, liveness
from ..tables import bytes_text, count_text

_WIDTH, _HEIGHT = 360, 72
_COLOURS = {"forward": "#2563eb", "backward": "#e11d48", "update": "#059669"}


def summary_html(
    graph: Graph, donated: Collection[int] = (), rows: Mapping[str, str] | None = None
) -> str:
    """Table of a graph's size, work and peak, and its live bytes over program order as SVG."""
    live, work = liveness(graph, donated, fused=True), cost(graph)
    phases = ", ".join(f"{count_text(w.nodes)} {name}" for name, w in work.by_phase.items())
    shown = {
        "nodes": f"{count_text(len(graph.nodes))} ({phases})" if phases else "0",
        "FLOPs": count_text(work.flops),
        "arguments": bytes_text(live.argument_bytes),
        "predicted peak": bytes_text(live.peak_bytes),
        **(rows or {}),
    }
    cells = "".join(
        f'<tr><th style="text-align:left;padding-right:1.5em">{escaped(name)}</th>'
        f'<td style="text-align:right">{escaped(text)}</td></tr>'
        for name, text in shown.items()
    )
    head = f"<strong>graph {escaped(graph.name)}</strong>"
    return f'<div style="font-family:sans-serif">{head}<table>{cells}</table>{_picture(live)}</div>'


def escaped(text: str) -> str:
    """Text as HTML in ASCII, whatever is in it."""
    return html.escape(text).encode("ascii", "xmlcharrefreplace").decode()


def _picture(live: Liveness) -> str:
    """Bars of live bytes, the greatest of each few positions, in the colour of their phase."""
    ends = min(_WIDTH, len(live.bytes))
    bars = []
    for i in range(ends):
        start, end = i * len(live.bytes) // ends, (i + 1) * len(live.bytes) // ends
        size = max(live.bytes[start:end]) * _HEIGHT / max(1, live.peak_bytes)
        nodes = live.graph.nodes
        phase = nodes[min(start, len(nodes) - 1)].phase if nodes else "forward"
        x, width = i * _WIDTH / ends, _WIDTH / ends
        bars.append(
            f'<rect x="{x:.1f}" y="{_HEIGHT - size:.1f}" width="{width:.1f}" height="{size:.1f}"'
            f' fill="{_COLOURS[phase]}"/>'
        )
    label = f"live bytes over program order, {bytes_text(live.peak_bytes)} at most"
    return (
        f'<svg width="{_WIDTH}" height="{_HEIGHT}" role="img" aria-label="{label}">'
        f"<title>{label}</title>{''.join(bars)}</svg>"
    )
