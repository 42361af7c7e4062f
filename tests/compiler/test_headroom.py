"""What is told before a program that may not fit runs, and when memory ran out."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import backpass as bp
from backpass.compiler import binding, headroom
from passes.joints import LOSSES, parameters, rows, sgd

LAYERS, WIDTH, BATCH = 6, 32, 512
HUGE = (1 << 34, 1 << 10)  # 64 TiB of float32


def arguments():
    params, x = parameters(LAYERS, WIDTH), rows(BATCH, WIDTH)
    return jax.tree.map(jnp.asarray, (params, x))


def step_of(**options):
    return bp.compile(sgd(LOSSES["mlp"], bp.value_and_grad), donate_argnums=0, **options)


def predicted(step, *args):
    lowered = step.lower(*args)
    return bp.ir.liveness(lowered.graph, lowered.donated, fused=True).peak_bytes


@pytest.fixture
def free(monkeypatch):
    """Says how many bytes are free."""

    def says(size):
        monkeypatch.setattr(headroom, "free_bytes", lambda device=None: size)

    return says


def held(args):
    return sum(x.nbytes for x in jax.tree.leaves(args))


def told(record):
    (warning,) = record
    assert warning.category is bp.MemoryWarning and warning.filename == __file__
    return str(warning.message)


def calls(step, *args):
    """What a call warns of, and its results."""
    with warnings.catch_warnings(record=True) as record:
        warnings.simplefilter("always")
        out = step(*args)
    return record, out


def test_bytes_lines_and_budgets_before_it_runs(free):
    args, step = arguments(), step_of()
    peak = predicted(step, *args)
    room = peak * 3 // 4
    free(room - held(args))
    record, out = calls(step, *args)
    text = told(record)
    assert f"is predicted to need {kib(peak)} at its peak, of which {kib(held(args))} are" in text
    assert f"cpu has {kib(room - held(args))} free" in text
    lines = [line.split() for line in text.splitlines()]
    assert ["args[1]", "argument", "1", "64.0", "KiB"] in lines
    assert any(row[:1] and row[0].startswith("tests/passes/joints.py:") for row in lines)
    assert "at tests/compiler/test_headroom.py:" in text and "no plan needs less than" in text
    budget = int(text.partition("memory_budget=")[2].split()[0])
    assert budget <= room
    params, x = arguments()
    within = step_of(memory_budget=budget)
    free(room - held((params, x)))
    assert not calls(within, params, x)[0], "the budget fits"
    assert np.isfinite(out[0])


def kib(size):
    return f"{size / 1024:.1f} KiB"


def test_once_for_each_program(free):
    free(0)
    step = step_of()
    params, x = arguments()
    record, (_, params) = calls(step, params, x)
    assert len(record) == 1
    record, (_, params) = calls(step, params, x)
    assert not record
    assert len(calls(step, params, x[:100])[0]) == 1


def test_arguments_that_are_there_are_not_counted_twice(free):
    params, x = arguments()
    step = step_of()
    peak = predicted(step, params, x)
    free(peak - held((params, x)))
    assert not calls(step, params, x)[0]
    numpy_x = np.asarray(x)
    record, _ = calls(step_of(), arguments()[0], numpy_x)
    assert "are there as arguments" in told(record), "what has to be copied needs room"


def test_the_same_array_twice_is_there_once():
    x = jnp.ones((256, 256))
    assert headroom.held_bytes([x, x, np.ones(9), 3.0]) == x.nbytes


def test_nothing_is_told_where_nothing_is_compiled(free):
    free(0)
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), arguments())
    step = step_of()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        step.trace(*shapes)
        step.lower(*shapes).as_text("stablehlo")
        bp.plan(step, *shapes, device="h100")
        jax.make_jaxpr(lambda *args: step(*args))(*arguments())
    with pytest.warns(bp.MemoryWarning) as record:
        step.lower(*shapes).compile()
    assert "there as arguments" not in told(record)


def test_ahead_of_time_with_arrays(free):
    free(0)
    with pytest.warns(bp.MemoryWarning) as record:
        step_of().lower(*arguments()).compile()
    assert "are there as arguments" in told(record)


def test_a_plan_that_needs_more_than_is_free_is_told_of(free):
    step = step_of(memory_budget="1GiB")
    free(0)
    assert "is predicted to need" in told(calls(step, *arguments())[0])


def test_no_plan_fits(free):
    free(0)
    step = bp.compile(lambda x: x * 2)
    text = told(calls(step, np.ones(1 << 20, np.float32))[0])
    assert "no plan fits, the least needs 8.0 MiB: make the batch smaller" in text


def test_small_programs_are_not_looked_at_closely(monkeypatch, free):
    free(1 << 30)
    monkeypatch.setattr(binding, "warn_of_memory", None)  # calling it would fail
    assert not calls(step_of(), *arguments())[0]


def test_a_loop_is_bounded_by_its_values():
    """The bound on sizes alone is above the peak, bodies of loops included."""

    def run(x):
        return jax.lax.scan(lambda c, _: (jnp.tanh(c @ c.T @ c), jnp.sin(c)), x, None, 5)

    graph = bp.compile(bp.grad(lambda x: run(x)[1].sum())).lower(jnp.ones((64, 64))).graph
    peak = bp.ir.liveness(graph, fused=True).peak_bytes
    sizes = sum(value.type.nbytes for node in graph.walk() for value in node.outputs)
    assert headroom.COPIES * sizes > peak


def test_unknown_memory_is_not_guessed_at(monkeypatch):
    def unknown(device=None):
        raise bp.ArgumentError("nothing tells")

    monkeypatch.setattr(headroom, "free_bytes", unknown)
    assert not calls(step_of(), *arguments())[0]


@pytest.mark.filterwarnings("ignore::backpass.MemoryWarning")
def test_running_out_of_memory():
    step = bp.compile(lambda x: jnp.ones(HUGE) * x.sum())
    x = jnp.ones(3)
    with pytest.raises(bp.OutOfMemoryError) as caught:
        step(x)
    error = caught.value
    assert isinstance(error, jax.errors.JaxRuntimeError)
    text = str(error)
    assert "ran out of memory: RESOURCE_EXHAUSTED" in text
    assert "it is predicted to need 64.0 TiB at its peak; cpu has" in text
    assert "tests/compiler/test_headroom.py:" in text and "no plan fits" in text
    with pytest.raises(jax.errors.JaxRuntimeError, match="RESOURCE_EXHAUSTED"):
        jax.block_until_ready(step(x))


class Full:
    """An executable on a device without memory."""

    def __call__(self, *args, **kwargs):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes.")


def test_running_out_of_memory_ahead_of_time(monkeypatch):
    args = arguments()
    compiled = step_of().lower(*args).compile()
    object.__setattr__(compiled, "_compiled", Full())
    with pytest.raises(bp.OutOfMemoryError, match="live at the peak"):
        compiled(*args)


def test_running_out_of_memory_with_donated_arguments(monkeypatch):
    """Which are gone then: the failed call took them."""
    step = step_of()
    params, x = arguments()
    step(params, x)
    monkeypatch.setattr(step._binding, "jit", Full())
    with pytest.raises(bp.OutOfMemoryError) as caught:
        step(params, x)
    assert "memory_budget=" in str(caught.value)
