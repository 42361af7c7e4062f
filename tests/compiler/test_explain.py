"""Why a function was traced, what each cause has cost, and the warning of too many traces."""

import threading
import warnings
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import backpass as bp
from backpass.compiler import explain
from passes.joints import LOSSES, parameters, rows, sgd

X = np.ones(3, np.float32)
PHASES = ("tracing", "passes", "planning", "binding", "compiling")


def reasons(step):
    return [trace.reason for trace in step.explain().traces]


def test_calls_that_need_no_trace():
    step = bp.compile(lambda x, n=1.0: x * n)
    for x in (X, jnp.asarray(X), X + 1, jax.device_put(X)):
        step(x, 2.0)
        step(x, 3.0)
    assert reasons(step) == ["first call"]


class Same:
    """A setting that is equal to itself alone."""


ONE, OTHER = Same(), Same()
WIDE = np.ones((2, 3), np.float32)
LONG, LONGER = "a" * 100 + "b" * 100, "a" * 100 + "c" * 100

RETRACED = {
    "shape": ({}, [(X,), (X[:2],)], ["args[0] dimension 0: 3 -> 2"]),
    "second dimension": ({}, [(WIDE,), (WIDE[:, :1],)], ["args[0] dimension 1: 3 -> 1"]),
    "both dimensions": (
        {},
        [(WIDE,), (WIDE.T,)],
        ["args[0] dimensions 0, 1: f32[2,3] -> f32[3,2]"],
    ),
    "rank": ({}, [(X,), (WIDE,)], ["args[0] rank: f32[3] -> f32[2,3]"]),
    "dtype": ({}, [(X,), (X.astype(np.int32),)], ["args[0] dtype: f32 -> i32"]),
    "weak": ({}, [(np.float32(1),), (1.0,)], ["args[0] weak type: f32[] -> f32[]*"]),
    "leaf path": (
        {},
        [({"layer": [{"w": X}]},), ({"layer": [{"w": X[:1]}]},)],
        ["args[0]['layer'][0]['w'] dimension 0: 3 -> 1"],
    ),
    "new leaf": (
        {},
        [({"a": X},), ({"a": X, "b": X},)],
        ["tree of args[0]: new leaf args[0]['b']"],
    ),
    "leaf gone": (
        {},
        [({"a": X, "b": X},), ({"a": X},)],
        ["tree of args[0]: no leaf args[0]['b']"],
    ),
    "none": ({}, [((X, X),), ((X, None),)], ["tree of args[0]: no leaf args[0][1]"]),
    "argument gone": ({}, [(X, X), (X,)], ["tree of args[1]: left out"]),
    "container": ({}, [([X],), ((X,),)], ["tree of args[0]: [*] -> (*,)"]),
    "empty argument": ({}, [(X,), (X, None)], ["tree of args[1]: given"]),
    "static": ({"static_argnums": 1}, [(X, 2), (X, 3)], ["static argument args[1]: 2 -> 3"]),
    "default": (
        {"static_argnums": 1},
        [(X,), (X, 3)],
        ["static argument args[1]: its default -> 3"],
    ),
    "long": (
        {"static_argnums": 1},
        [(X, LONG), (X, LONGER)],
        [
            "static argument args[1]: ...aaaaaaaabbbbbbbbbbbbbbbbbbbbbbbb... -> "
            "...aaaaaaaacccccccccccccccccccccccc..."
        ],
    ),
    "nearest": (
        {},
        [(X, X), (X[:1], X[:1]), (X, X[:2])],
        ["args[0] dimension 0: 3 -> 1, and 1 more", "args[1] dimension 0: 3 -> 2"],
    ),
}


@pytest.mark.parametrize("name", RETRACED)
def test_reasons(name):
    options, calls, expected = RETRACED[name]
    step = bp.compile(lambda x, *rest: jax.tree.leaves(x)[0] * 2, **options)
    for args in [*calls, *calls]:
        step(*args)
    assert reasons(step) == ["first call", *expected]


def test_reasons_for_keywords_and_settings():
    step = bp.compile(lambda x, mask=None: x)
    step(X)
    step(X, mask=X)
    with jax.enable_x64(True):
        step(X)
    with jax.default_matmul_precision("float32"):
        step(X)
    with jax.set_mesh(jax.make_mesh((1,), ("data",))):
        step(X)
    assert reasons(step)[1] == "tree of mask: given"
    settings = ["jax_enable_x64: False -> True", "jax_default_matmul_precision: None -> float32"]
    assert reasons(step)[2:4] == settings
    assert reasons(step)[4] == "JAX's mesh: none -> data=1"


def test_a_function_of_an_outer_traces_values():
    step = None

    def outer(y):
        nonlocal step
        step = bp.compile(lambda x: x * y)
        step.trace(X)
        return step(X)

    jax.jit(outer)(2.0)
    assert reasons(step) == ["first call", "values of an outer trace"]


# Seconds


def test_explanation_as_tables():
    step = bp.compile(lambda x: x["a"] * 2)
    assert "0 traces" in str(step.explain())
    step({"a": X})
    for length in (1, 2):
        step({"a": X[:length]})
    step({"a": X.astype(np.int32)})
    explanation = step.explain()
    head, causes, traces = str(explanation).split("\n\n")
    assert head.startswith("<lambda>: 4 traces, ")
    named = {line.rsplit(maxsplit=2)[0]: line.split()[-2] for line in causes.splitlines()[2:]}
    assert named == {
        "first call": "1",
        "args[0]['a'] dimension 0": "2",
        "args[0]['a'] dtype": "1",
    }
    assert "3 args[0]['a'] dimension 0: 1 -> 2 " in traces
    for trace in explanation.traces:
        assert trace.nodes == 1 and trace.compiles == 1 and trace.planning == 0
        assert trace.tracing > 0 and trace.binding > 0 and trace.compiling > 0
        assert trace.seconds == pytest.approx(sum(getattr(trace, p) for p in PHASES))
    assert explanation.seconds == pytest.approx(sum(t.seconds for t in explanation.traces))
    assert explanation.seconds == pytest.approx(sum(t.seconds for t in explanation.by_cause))
    assert sum(tally.traces for tally in explanation.by_cause) == 4
    seconds = [tally.seconds for tally in explanation.by_cause]
    assert seconds == sorted(seconds, reverse=True)


def test_xlas_time_goes_to_the_trace_that_was_compiled():
    step = bp.compile(lambda x: jnp.sin(x) * 2)
    step.trace(X)
    step.trace(X[:1])
    step.lower(X).compile()
    first, second = step.explain().traces
    assert first.compiling > 0 and first.compiles == 1
    assert second.compiling == second.binding == second.compiles == 0
    before = first
    step(X[:1])
    first, second = step.explain().traces
    assert first == before
    assert second.compiling > 0 and second.compiles == 1


def test_lowering_is_no_compile():
    step = bp.compile(lambda x: x * 2)
    step.lower(X).as_text("stablehlo")
    (trace,) = step.explain().traces
    assert trace.binding > 0 and trace.compiles == 0


def test_a_compile_inside_another_program_is_not_ours():
    step = bp.compile(lambda x: x * 2)
    jax.jit(step)(X)
    (trace,) = step.explain().traces
    assert trace.binding > 0 and trace.compiles == 0


def test_threads_have_their_own_times():
    step = bp.compile(lambda x: jnp.sin(x) * 2)
    meet = threading.Barrier(3)

    def call(length):
        meet.wait()
        return step(X[:length])

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(call, (1, 2, 3)))
    assert [trace.compiles for trace in step.explain().traces] == [1, 1, 1]
    assert all(trace.compiling > 0 for trace in step.explain().traces)


def test_the_search_for_a_plan_is_counted():
    args = (parameters(6, 32), rows(512, 32))
    step = sgd(LOSSES["mlp"], bp.value_and_grad)
    with pytest.raises(bp.BudgetError) as caught:
        bp.compile(step, memory_budget=1, donate_argnums=0)(*args)
    planned = bp.compile(step, memory_budget=caught.value.minimum_bytes, donate_argnums=0)
    rounds = planned.lower(*args).compile().plan.rounds
    (trace,) = planned.explain().traces
    assert trace.compiles == rounds and trace.planning > 0
    assert trace.reason == "first call"


# The warning


def told(record):
    (warning,) = record
    assert warning.filename == __file__
    return str(warning.message)


def test_more_than_max_traces():
    step = bp.compile(lambda x: x * 2, max_traces=1)
    step(X)
    for length in (1, 2):
        with pytest.warns(bp.RetraceWarning) as record:
            step(X[:length])
        text = told(record)
    assert "was traced 3 times, more than max_traces=1: args[0] dimension 0: 1 -> 2" in text
    assert "at tests/compiler/test_explain.py:" in text
    assert "args[0] dimension 0 has made for 2 traces and " in text
    assert " s so far, of " in text and "pad it to a few fixed shapes" in text


def many(step, calls):
    """The warnings of so many calls."""
    with warnings.catch_warnings(record=True) as record:
        warnings.simplefilter("always")
        for args in calls:
            step(*args)
    return record


def lengths(count):
    return [(np.zeros(n, np.float32),) for n in range(1, count + 1)]


def test_a_trace_at_every_call_is_told_once():
    limit = explain.PATIENCE
    step = bp.compile(lambda x: x)
    assert not many(step, lengths(limit))
    text = told(many(step, lengths(limit + 4)[limit:]))
    assert f"was traced {limit + 1} times in {limit + 1} calls" in text


def test_many_shapes_with_many_calls_each_are_no_trouble():
    step = bp.compile(lambda x: x)
    calls = [args for args in lengths(explain.PATIENCE + 4) for _ in range(3)]
    assert not many(step, calls)


def test_many_programs_that_were_asked_for_are_no_trouble():
    step = bp.compile(lambda x: x)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for args in lengths(explain.PATIENCE + 4):
            step.trace(*args)
    assert len(step.explain().traces) == explain.PATIENCE + 4


ADVISED = {
    "dtype": ({}, [(X,), (X.astype(np.int8),)], "convert it to one dtype"),
    "weak": ({}, [(np.float32(1),), (1.0,)], "jnp.asarray(x, dtype), in place of a Python number"),
    "tree": ({}, [((X,),), ((X, X),)], "the same leaves in the same containers"),
    "static": ({"static_argnums": 1}, [(X, 1.5), (X, 2.5)], "pass it as an array"),
    "object": ({"static_argnums": 1}, [(X, ONE), (X, OTHER)], "give its class __eq__ and __hash__"),
}


@pytest.mark.parametrize("name", ADVISED)
def test_advice_is_that_for_the_cause(name):
    options, (first, second), advice = ADVISED[name]
    step = bp.compile(lambda x, *rest: jax.tree.leaves(x)[0] * 2, max_traces=1, **options)
    step(*first)
    with pytest.warns(bp.RetraceWarning) as record:
        step(*second)
    assert advice in told(record)
