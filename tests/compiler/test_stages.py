"""The stages of ahead-of-time compilation, and what is told about traces."""

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
    debug = step._jit.lower(PARAMS, X).as_text(debug_info=True)
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


# Why a function was traced


def reasons(step):
    return [trace.reason for trace in step.explain().traces]


def test_calls_that_need_no_trace():
    step = bp.compile(lambda x, n=1.0: x * n)
    for x in (X, jnp.asarray(X), X + 1, jax.device_put(X)):
        step(x, 2.0)
        step(x, 3.0)
    assert reasons(step) == ["first call"]


RETRACED = {
    "shape": ({}, [(X,), (X[:2],)], ["args[0]: f32[3] -> f32[2]"]),
    "dtype": ({}, [(X,), (X.astype(np.int32),)], ["args[0]: f32[3] -> i32[3]"]),
    "weak": ({}, [(np.float32(1),), (1.0,)], ["args[0]: f32[] -> f32[]*"]),
    "leaf path": (
        {},
        [({"layer": [{"w": X}]},), ({"layer": [{"w": X[:1]}]},)],
        ["args[0]['layer'][0]['w']: f32[3] -> f32[1]"],
    ),
    "new leaf": ({}, [({"a": X},), ({"a": X, "b": X},)], ["new leaf args[0]['b']"]),
    "leaf gone": ({}, [({"a": X, "b": X},), ({"a": X},)], ["no leaf args[0]['b']"]),
    "none": ({}, [((X, X),), ((X, None),)], ["no leaf args[0][1]"]),
    "container": ({}, [([X],), ((X,),)], ["tree structure"]),
    "static": ({"static_argnums": 1}, [(X, 2), (X, 3)], ["static argument args[1]: 2 -> 3"]),
    "nearest": (
        {},
        [(X, X), (X[:1], X[:1]), (X, X[:2])],
        ["args[0]: f32[3] -> f32[1], and 1 more", "args[1]: f32[3] -> f32[2]"],
    ),
}


@pytest.mark.parametrize("name", RETRACED)
def test_reasons(name):
    options, calls, expected = RETRACED[name]
    step = bp.compile(lambda x, *rest: jax.tree.leaves(x)[0] * 2, **options)
    for args in [*calls, *calls]:
        step(*args)
    assert reasons(step) == ["first call", *expected]


def test_reason_for_keyword_and_context():
    step = bp.compile(lambda x, mask=None: x)
    step(X)
    step(X, mask=X)
    assert reasons(step)[1] == "new leaf mask"
    with jax.enable_x64(True):
        step(np.float32(X))
    assert "x64" in reasons(step)[2] or "setting" in reasons(step)[2]


def test_explanation_as_a_table():
    step = bp.compile(lambda x: x * 2)
    assert "0 traces" in str(step.explain())
    step(X)
    step(X[:1])
    explanation = step.explain()
    lines = str(explanation).splitlines()
    assert "<lambda>: 2 traces" in lines[0] and "reason" in lines[1]
    assert lines[2].endswith("first call") and lines[3].endswith("args[0]: f32[3] -> f32[1]")
    for trace in explanation.traces:
        assert trace.nodes == 1
        assert trace.tracing > 0 and trace.binding > 0 and trace.compiling > 0
    assert explanation.seconds == pytest.approx(sum(t.seconds for t in explanation.traces))


def test_too_many_traces_warn():
    step = bp.compile(lambda x: x * 2, max_traces=1)
    step(X)
    with pytest.warns(UserWarning, match=r"traced 2 times, more than max_traces=1: args\[0\]"):
        step(X[:1])


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
