"""Graphs in Treescope: layers that unfold down to the nodes."""

import collections

import jax
import jax.numpy as jnp
import pytest

import backpass as bp
from backpass.ir import treescope_view

# Treescope walks through all of NumPy, what is deprecated there as well.
pytestmark = pytest.mark.filterwarnings("ignore:The chararray class:DeprecationWarning")
treescope = pytest.importorskip("treescope")


def loss(w, x):
    with jax.named_scope("block"):
        with jax.named_scope("mlp"):
            x = jnp.tanh(x @ w)
        x, _ = jax.lax.scan(lambda c, _: (jnp.sin(c @ w), None), x, None, 3)
    return jnp.mean(x**2)


@pytest.fixture(scope="module")
def lowered():
    step = bp.compile(lambda w, x: bp.value_and_grad(loss)(w, x))
    return step.lower(jnp.ones((8, 8), "float32"), jnp.ones((4, 8), "float32"))


def opened(thing):
    """Text of a rendering, all of it unfolded."""
    return treescope.render_to_html(thing, compressed=False)


def phases(graph):
    """`forward: 6 nodes` and so on."""
    counts = collections.Counter(node.phase for node in graph.nodes)
    return [f"{phase}: {count} nodes" for phase, count in counts.items()]


def test_a_graph_by_phases_and_layers(lowered):
    text = treescope.render_to_text(lowered.graph)
    lines = text.splitlines()
    count = len(lowered.graph.nodes)
    assert (
        lines[0].startswith(f"graph <lambda>: {count} nodes, ") and "384 B of arguments" in lines[0]
    )
    assert "  2 inputs {...}" in lines and "    block: 3 nodes {...}" in lines
    assert [lines.index(f"  {phase} {{") > 0 for phase in phases(lowered.graph)] == [True, True]


def test_every_node_is_there_with_its_line(lowered):
    html = opened(lowered.graph)
    for node in lowered.graph.walk():
        assert f"{node.op.name}(" in html
    assert "test_treescope.py:" in html and "mlp: " in html and "f32[8,8] args[0]" in html


def test_a_lowered_program(lowered):
    lines = treescope.render_to_text(lowered).splitlines()
    assert lines[:3] == ["Lowered <lambda> {", "  stages {...}", "  layers {...}"]
    assert lines[3].startswith("  final graph <lambda>: ")
    html = opened(lowered)
    assert all(f"{stage.name}: " in html for stage in lowered.stages)
    assert "forward FLOPs" in html and "memory plan" not in html


def test_a_plan_is_shown():
    step = bp.compile(lambda w: bp.value_and_grad(loss)(w, jnp.ones((4, 8))), memory_budget="1GiB")
    assert "memory plan" in opened(step.lower(jnp.ones((8, 8))))


def test_inside_a_container(lowered):
    assert "graph <lambda>: " in treescope.render_to_text({"step": [lowered.graph]})


def test_large_graphs_are_cut(lowered, monkeypatch):
    monkeypatch.setattr(treescope_view, "_NODES", 4)
    text = treescope.render_to_text(lowered.graph)
    assert f"{len(lowered.graph.nodes) - 4} more nodes: to_html(path) shows all" in text
