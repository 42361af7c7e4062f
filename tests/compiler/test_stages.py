"""The stages of ahead-of-time compilation."""

import inspect
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import backpass as bp
from backpass.ir import verify

X = np.arange(3, dtype=np.float32)
SHAPE = jax.ShapeDtypeStruct((3,), jnp.float32)


def loss(params, x):
    with jax.named_scope("model"):
        hidden = jnp.tanh(x @ params["w"])  # matrix
    return jnp.sum(hidden**2)


MATRIX = inspect.getsourcelines(loss)[1] + 2


@pytest.fixture
def step():
    @bp.compile
    def step(params, x):
        value, grads = bp.value_and_grad(loss)(params, x)
        return jax.tree.map(lambda p, g: p - 0.1 * g, params, grads), value

    return step


PARAMS = {"w": np.ones((3, 2), np.float32)}


def test_traced(step):
    traced = step.trace(PARAMS, X)
    assert isinstance(traced, bp.Traced)
    assert [node.op.name for node in traced.graph.nodes][0] == "gradients"
    assert [value.name for value in traced.graph.inputs] == ["args[0]['w']", "args[1]"]
    assert [eqn.primitive.name for eqn in traced.jaxpr.eqns][0] == "program_call"
    assert jax.tree.map(lambda s: s.shape, traced.out_info) == ({"w": (3, 2)}, ())
    assert traced.lower().graph == step.lower(PARAMS, X).graph


def test_lowered(step):
    lowered = step.lower(PARAMS, X)
    assert isinstance(lowered, bp.Lowered)
    names = [stage.name for stage in lowered.stages]
    assert " ".join(names) == (
        "traced canonicalise sink hoist defer cse dce roll fuse autodiff fold simplify convolutions"
        " cse defer cse dce restack unroll"
    )
    assert lowered.stages[0].graph == step.trace(PARAMS, X).graph
    assert lowered.stages[-1].graph is lowered.graph
    assert all(stage.seconds >= 0 for stage in lowered.stages)
    for stage in lowered.stages:
        verify(stage.graph)
    assert jax.tree.map(lambda s: s.dtype, lowered.out_info) == ({"w": jnp.float32}, jnp.float32)
    assert lowered.cost_analysis()["flops"] > 0


def test_compiled(step):
    compiled = step.lower(PARAMS, X).compile()
    assert isinstance(compiled, bp.Compiled)
    for found, expected in zip(
        jax.tree.leaves(compiled(PARAMS, X)), jax.tree.leaves(step(PARAMS, X)), strict=True
    ):
        np.testing.assert_array_equal(found, expected)
    assert "HloModule" in compiled.as_text()
    assert compiled.memory_analysis().argument_size_in_bytes == 24 + 12
    assert compiled.cost_analysis()["flops"] > 0


def test_shapes_are_enough(step):
    shapes = {"w": jax.ShapeDtypeStruct((3, 2), jnp.float32)}
    assert step.trace(shapes, SHAPE).graph == step.trace(PARAMS, X).graph
    compiled = step.lower(shapes, SHAPE).compile()
    np.testing.assert_array_equal(compiled(PARAMS, X)[1], step(PARAMS, X)[1])
    assert len(step.explain().traces) == 1, "arrays and shapes of one type share a trace"


def test_static_arguments_are_left_out_when_compiled():
    step = bp.compile(lambda x, n, how="sum": getattr(jnp, how)(x) * n, static_argnames="how")
    assert float(step.lower(SHAPE, 2.0, how="max").compile()(X, 2.0)) == 4.0


# Text


def test_backpass_text_is_the_graph(step):
    lowered = step.lower(PARAMS, X)
    assert lowered.as_text() == str(lowered.graph)
    assert bp.ir.parse(lowered.as_text()) == lowered.graph


def test_stablehlo_has_the_users_lines_and_scopes(step):
    text = step.lower(PARAMS, X).as_text("stablehlo")
    assert "stablehlo.dot_general" in text and "module @jit_step" in text
    debug = step._binding.jit.lower(PARAMS, X).as_text(debug_info=True)
    assert f'test_stages.py":{MATRIX}:' in debug, "the line of the matrix product"
    assert "model/" in debug


def test_every_node_has_its_line(step):
    graph = step.lower(PARAMS, X).graph
    lines = {node.source for node in graph.nodes if node.op.name == "dot_general"}
    assert {source.rsplit("/", 1)[-1] for source in lines} == {f"test_stages.py:{MATRIX}"}
    assert {node.scope for node in graph.nodes if node.op.name == "tanh"} == {"model"}
    assert {node.phase for node in graph.nodes} == {"forward", "backward", "update"}
    assert all(node.source for node in graph.nodes if node.op.name not in ("constant",))


def test_dump(step, tmp_path):
    lowered = step.lower(PARAMS, X)
    paths = lowered.dump(tmp_path / "out")
    names = [path.name for path in paths]
    assert names[:2] == ["000_traced.txt", "001_canonicalise.txt"] and names[-1] == "manifest.json"
    assert bp.ir.parse(paths[len(lowered.stages) - 1].read_text()) == lowered.graph


# Threads and platforms


def test_no_threads_are_left_behind():
    before = threading.active_count()
    step = bp.compile(lambda x: x * 2)
    step(X)
    jax.jit(lambda x: step(x))(X[:2])
    step.lower(X[:1]).compile()
    with pytest.raises(TypeError):
        step(X, X)
    assert threading.active_count() == before


def test_a_choice_by_platform_is_read_back():
    """`platform_index` has no public name in JAX; the parser knows it all the same."""

    def f(x):
        return jax.lax.platform_dependent(x, cpu=jnp.sin, default=jnp.cos)

    graph = bp.compile(f).trace(1.0).graph
    assert "platform_index" in str(graph)
    assert bp.ir.parse(str(graph)) == graph
