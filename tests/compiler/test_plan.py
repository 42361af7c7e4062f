"""`bp.plan` and `backpass plan`: frontiers by shape alone, for devices that are not here."""

import json
import sys

import jax
import jax.numpy as jnp
import pytest

import backpass as bp
from backpass.cli.main import main
from backpass.compiler.binding import Binding
from backpass.ir.device import DEVICES
from passes.joints import LOSSES, parameters, rows, sgd

LAYERS, WIDTH, BATCH = 6, 32, 512
FILE = """
import jax
import jax.numpy as jnp
import backpass as bp

def step(params, x):
    def loss(params):
        h = x
        for w in params:
            h = jnp.tanh(h @ w)
        return (h**2).mean()
    value, grads = bp.value_and_grad(loss)(params)
    return [p - g for p, g in zip(params, grads)], value

def one(w, x):
    return step([w, w, w], x)

def example_args():
    f32 = jnp.float32
    return [jax.ShapeDtypeStruct((32, 32), f32)] * 4, jax.ShapeDtypeStruct((512, 32), f32)
"""


def shapes():
    args = parameters(LAYERS, WIDTH), rows(BATCH, WIDTH)
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), args)


def planned(name="mlp", **options):
    return bp.plan(sgd(LOSSES[name]), *shapes(), donate_argnums=0, **options)


@pytest.mark.parametrize("name", LOSSES)
def test_a_spread_goes_from_the_plain_step_to_the_leanest(name):
    plans = planned(name, device="h100")
    assert len(plans) >= 8 and not plans.infeasible and plans.fits
    budgets = [plan.budget_bytes for plan in plans]
    seconds = [plan.predicted_seconds for plan in plans]
    assert budgets == sorted(budgets, reverse=True)
    assert seconds == sorted(seconds)
    assert budgets[0] == DEVICES["h100"].memory_bytes
    assert plans[0].predicted_bytes == plans.plain_bytes
    assert plans[-1].predicted_bytes == plans.minimum_bytes < plans.plain_bytes
    assert all(plan.predicted_bytes <= plan.budget_bytes for plan in plans)
    assert all(plan.measured_bytes is None for plan in plans)


def test_what_is_planned_is_what_compile_plans():
    """On the same device, for the same budget, from arrays or from their shapes."""
    budget = planned().minimum_bytes * 5 // 4
    step = bp.compile(sgd(LOSSES["mlp"]), donate_argnums=0, memory_budget=budget)
    ours = step.lower(*shapes()).plan
    (plan,) = planned(budgets=[budget])
    assert plan.choice == ours.choice
    assert plan.predicted_bytes == ours.predicted_bytes
    (again,) = bp.plan(step, parameters(LAYERS, WIDTH), rows(BATCH, WIDTH), budgets=budget)
    assert again.predicted_bytes == plan.predicted_bytes


def test_a_compiled_function_keeps_its_options():
    given = bp.compile(sgd(LOSSES["mlp"]), donate_argnums=0)
    least = planned().minimum_bytes
    assert bp.plan(given, *shapes()).minimum_bytes == least
    assert bp.plan(given, *shapes(), donate_argnums=()).minimum_bytes > least


def test_nothing_is_compiled(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("compiled")

    monkeypatch.setattr(jax.stages.Lowered, "compile", refuse)
    monkeypatch.setattr(Binding, "_lower", refuse)
    assert planned(budgets=["1GiB"])[0].budget_bytes == 1 << 30


def test_an_infeasible_budget_tells_the_minimum_and_what_binds():
    plans = planned(budgets=["1GiB", 1000], device="h200")
    assert [plan.budget_bytes for plan in plans] == [1 << 30]
    assert plans.infeasible == (1000,) and plans.minimum_bytes > 1000
    text = str(plans)
    assert "1000 B" in text and "infeasible, the minimum is" in text
    assert "live at the peak" in text and "args[0][0]" in text
    (least,) = planned(budgets=plans.minimum_bytes, device="h200")
    assert least.predicted_bytes == plans.minimum_bytes
    assert not planned(budgets=plans.minimum_bytes - 1, device="h200")


def test_a_device_that_is_too_small_is_told():
    small = bp.DeviceSpec(1000, 1e12, 1e11)
    plans = planned(device=small)
    assert not plans.fits
    assert "the device has 1000 B: no plan fits it" in str(plans)
    assert "no plan fits" not in str(planned(device="h100"))


def test_devices_are_told_in_four_ways():
    spec = DEVICES["cpu"]
    plans = [planned(device=device) for device in (None, "cpu", spec, jax.devices()[0])]
    assert len({str(each) for each in plans}) == 1
    faster = planned(device="h200")
    assert faster.plain_seconds < plans[0].plain_seconds
    for wrong in ("h9", 3):
        with pytest.raises(bp.ArgumentError, match="device"):
            planned(device=wrong)


def test_wrong_budgets_are_refused():
    with pytest.raises(bp.ArgumentError, match="memory_budget wants bytes"):
        planned(budgets=["a lot"])


def test_the_frontier_is_drawn(tmp_path, monkeypatch):
    plans = planned(device="h100")
    plans.save_png(tmp_path / "plans.png")
    assert (tmp_path / "plans.png").read_bytes()[:4] == b"\x89PNG"
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(bp.ArgumentError, match="pip install matplotlib"):
        plans.save_png(tmp_path / "none.png")


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "planned_model.py"
    path.write_text(FILE)
    return path


def test_the_command_prints_the_table(file, tmp_path, capsys):
    png = tmp_path / "frontier.png"
    options = ["--budget", "1GiB,1KiB", "--device", "h200", "--donate", "0", "--png", str(png)]
    assert main(["plan", f"{file}:step", *options]) == 0
    told = capsys.readouterr()
    assert "1.0 GiB" in told.out and "infeasible" in told.out and "no budget" in told.out
    assert "planned in" in told.err and "planned in" not in told.out
    assert png.exists()


def test_the_command_writes_json(file, capsys):
    target = f"{file}:one"
    specs = ["f32[32,32]", "f32[512,32]", "--json", "--device", "tpu-v5e", "--budget", "1GiB"]
    assert main(["plan", target, *specs]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [plan["budget_bytes"] for plan in told["plans"]] == [1 << 30]
    assert told["minimum_bytes"] < told["plain_bytes"]
    assert told["memory_bytes"] == DEVICES["tpu-v5e"].memory_bytes


@pytest.mark.parametrize(
    "options",
    [["--budget", "much"], ["--device", "h9"], ["--donate", "x"], ["f32[8"], ["--donate", "7"]],
)
def test_bad_use_is_two(file, options, capsys):
    assert main(["plan", f"{file}:step", *options]) == 2
    assert capsys.readouterr().err.startswith("backpass: ")


def test_a_long_chain_is_planned():
    """Schedules nest as deeply as the chain has segments."""
    step, layers = sgd(LOSSES["mlp"]), 200
    args = [jax.ShapeDtypeStruct((8, 8), jnp.float32)] * layers, rows(4096, 8)
    plans = bp.plan(step, *args, donate_argnums=0)
    assert plans.minimum_bytes < plans.plain_bytes / 4
    assert all("recompute" in {d.action for d in plan.decisions} for plan in plans[2:])


def test_forms_for_the_cpu_are_not_planned_elsewhere():
    """Gradients of filters by few images are scanned products here, else convolutions."""

    def loss(w, x):
        out = jax.lax.conv_general_dilated(
            x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        return jnp.sin(out).sum()

    args = [jax.ShapeDtypeStruct(s, jnp.float32) for s in ((3, 3, 32, 32), (4, 64, 64, 32))]
    text = {
        device: str(bp.plan(bp.grad(loss), *args, device=device, budgets="1GiB")[0])
        for device in ("cpu", "h100")
    }
    assert "inside scan" in text["cpu"] and "inside conv_general_dilated" in text["h100"]


@pytest.mark.parametrize("fun", [lambda x: x, lambda x: (), lambda x: jnp.zeros(3)])
def test_a_program_that_computes_nothing_has_a_plan(fun):
    step = bp.compile(fun, memory_budget="1MiB")
    plan = step.lower(1.0).compile().plan
    assert plan.gap == 0 and "memory plan" in str(plan)
    assert jax.tree.all(jax.tree.map(lambda a, b: (a == b).all(), step(1.0), jax.jit(fun)(1.0)))
