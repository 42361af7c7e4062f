"""`debug="nan"`: where the first NaN or infinity was made, and that nothing is lost by it."""

import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import backpass as bp
from backpass.compiler import nonfinite
from compiler.faults import FAULTS, W, X, descend


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """Files of single ops go where the test's files go."""
    monkeypatch.setenv("BACKPASS_DUMP", str(tmp_path))


def caught(step, *args, **options):
    with pytest.raises(bp.NonFiniteError) as found:
        bp.compile(step, debug="nan", **options)(*args)
    return found.value


def check(error, fault):
    assert (error.op, error.phase, error.steps) == (fault.op, fault.phase, fault.steps), error
    assert error.source.endswith(fault.line), error
    assert ("where(ok" in str(error)) == fault.trap, error


@pytest.mark.parametrize("name", FAULTS)
def test_planted_faults(name):
    fault = FAULTS[name]
    check(caught(fault.step, *fault.args), fault)


BUDGETED = (
    "log_of_negative where_around_negative_root where_around_root inside_scan slope_inside_scan "
    "inside_cond slope_inside_cond inside_nested_scans inside_checkpoint adam_without_epsilon"
).split()


@pytest.mark.parametrize("name", BUDGETED)
def test_planted_faults_under_a_budget(name):
    fault = FAULTS[name]
    plans = bp.plan(fault.step, *fault.args)
    budget = (plans.minimum_bytes + plans.plain_bytes) // 2
    try:
        bp.compile(fault.step, memory_budget=budget).lower(*fault.args).compile()
    except bp.BudgetError as error:
        budget = error.minimum_bytes
    check(caught(fault.step, *fault.args, memory_budget=budget), fault)


def test_fine_results_pass():
    step = bp.compile(FAULTS["log_of_negative"].step, debug="nan")
    new, loss = step(np.abs(W), X)
    assert np.isfinite(loss) and np.isfinite(new).all()


def test_trouble_that_stays_inside_is_none():
    """What the result does not show is the program's own affair."""

    def step(x):
        return jnp.where(x > 0, jnp.log(x), 0.0), jnp.exp(jnp.log(0.0 * x))

    kept, zero = bp.compile(step, debug="nan")(-X)
    assert not np.any(kept) and not np.any(zero)


def test_infinity_on_purpose_is_none():
    def step(best, x):
        masked = jnp.where(x > 1, x, -jnp.inf)
        return jnp.minimum(best, jnp.inf), masked

    best, masked = bp.compile(step, debug="nan")(np.float32(np.inf), X)
    assert best == np.inf and (masked == np.where(X > 1, X, -np.inf)).all()


def test_an_argument_that_is_not_finite():
    def step(state, x):
        return {"w": state["w"] * 2}, x.sum()

    bad = np.where(W > 0, np.nan, W)
    error = caught(step, {"w": bad}, X)
    assert "given NaN at args[0]['w']" in str(error) and error.leaves == ("result[0]['w']",)
    assert error.op == "" and error.repro is None


def test_donated_state_survives():
    fault = FAULTS["log_of_negative"]
    state = jnp.asarray(W)
    caught(fault.step, state, X, donate_argnums=0)
    assert (np.asarray(state) == W).all()
    step = bp.compile(fault.step, debug="nan", donate_argnums=0)
    fine = jnp.abs(state)
    step(fine, X)
    assert not fine.is_deleted()
    with pytest.raises(bp.NonFiniteError):
        step.lower(state, X).compile()(state, X)
    assert not state.is_deleted()


def test_overflow_in_mixed_precision():
    def loss(w, x):
        h = x @ w
        return jnp.sum(h * h * 1e-9)

    error = caught(bp.value_and_grad(loss), 1e2 * W, 1e2 * X, precision="float16")
    assert (error.op, error.phase) == ("mul", "forward") and "f16" in str(error)


def test_the_file_computes_the_node_alone():
    error = caught(FAULTS["log_of_negative"].step, W, X)
    ran = subprocess.run(
        [sys.executable, str(error.repro)], capture_output=True, text=True, check=True, timeout=300
    )
    assert "nan" in ran.stdout and "operand 0: float32[8]" in ran.stdout


def test_the_file_goes_where_dumps_go(tmp_path):
    error = caught(FAULTS["product_beyond_float16"].step, *FAULTS["product_beyond_float16"].args)
    assert tmp_path in Path(error.repro).parents and "dot_general" in error.repro.read_text()


def test_what_is_told():
    text = str(caught(FAULTS["inside_scan"].step, *FAULTS["inside_scan"].args))
    head, place, *rest = text.splitlines()
    assert head == "sqrt gave 3,072 NaN of 3,072 numbers in the forward pass"
    assert "in step 2 of the scan at" in place
    assert any(line.split()[:2] == ["operand", "0"] for line in rest)
    assert "the first is sqrt(-0.5) = nan at [0, 0]" in text and "it reaches result[1]" in text


def test_float64_complex_and_static_arguments():
    with jax.enable_x64(True):

        def step(kind, z):
            return jnp.log(jnp.abs(z) - 4).sum() if kind == "log" else z

        error = caught(step, "log", W[0] + 1j * X[0], static_argnums=0)
        assert error.op == "log" and error.leaves == ("result",)
        big = caught(lambda z: z * 1e200 * 1e200, W[0].astype(np.complex128) * 1j)
        assert big.op == "mul"


@pytest.mark.parametrize("part", ["recorded", "births"])
def test_a_search_that_fails_still_tells_of_the_result(monkeypatch, part):
    def short(*args, **more):
        raise MemoryError("none left")

    monkeypatch.setattr(nonfinite, part, short)
    error = caught(FAULTS["log_of_negative"].step, W, X)
    assert error.leaves == ("result[1]",) and error.op == ""
    assert "could not be found" in str(error) and isinstance(error.__cause__, MemoryError)
    assert "MemoryError: none left" in error.__notes__[0]


@pytest.mark.parametrize("part", ["nonfinite.tapped", "nonfinite_report.write_repro"])
def test_a_report_that_fails_still_tells_of_the_op(monkeypatch, part):
    calls = []

    def fails(*args, **more):
        calls.append(args)
        if len(calls) == 1:
            raise RuntimeError("no room")

    monkeypatch.setattr(f"backpass.compiler.{part}", fails)
    fault = FAULTS["where_around_root"]
    error = caught(fault.step, *fault.args)
    assert (error.op, error.phase, error.repro) == (fault.op, fault.phase, None)
    assert error.source.endswith(fault.line) and isinstance(error.__cause__, RuntimeError)


def test_inside_another_program_nothing_is_looked_at():
    step = bp.compile(lambda x: jnp.log(x), debug="nan")
    assert np.isnan(jax.jit(lambda x: step(x))(-X)).all()


def test_tensors_keep_their_values():
    from backpass import dynamic as dyn

    w = dyn.tensor(W, requires_grad=True)

    @bp.compile(debug="nan")
    def step(x):
        loss = dyn.numpy.log(x @ w).sum()
        loss.backward()
        return loss

    with pytest.raises(bp.NonFiniteError, match="log gave"):
        step(X)
    assert (w.detach().numpy() == W).all() and w.grad is None


def test_debug_names_are_checked():
    with pytest.raises(bp.ArgumentError, match="'nan'"):
        bp.compile(descend, debug="nans")
