"""How benchmarks measure: turns, ratios, the allocator; and what they compare."""

import argparse
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from backpass.bench import measure
from backpass.bench.arms import differences
from backpass.bench.models.parts import parts
from backpass.bench.models.sizes import SIZES, fitting, models
from backpass.bench.task import CHECK_RATE
from backpass.cli import bench

NAMES = ["mlp", "resnet", "gpt", "gpt_scan", "lstm", "vit", "unet", "moe", "vae"]


@pytest.mark.parametrize("size", SIZES)
def test_every_model_is_a_scalar_loss(size):
    """At all sizes, by shape alone; every leaf is a parameter in float32."""
    made = models(size=size)
    assert [model.name for model in made] == NAMES
    for model in [*made, *(build() for build in parts(size).values())]:
        key = jax.eval_shape(lambda: jax.random.key(0))
        params, batch = jax.eval_shape(model.init, key), jax.eval_shape(model.batch, key)
        assert jax.eval_shape(model.loss, params, batch) == jax.ShapeDtypeStruct((), jnp.float32)
        assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.float32.dtype}
    assert len(parts(size)) == 23


def test_the_size_suits_the_device():
    assert fitting("auto") == "small" and fitting("large") == "large"


def test_ratios_are_round_by_round():
    """What slows a whole round changes nothing; quartiles are within what was seen."""
    ratio = measure.ratio([1.0, 10.0, 3.0], [2.0, 20.0, 6.0])
    assert (ratio.low, ratio.median, ratio.high) == (0.5, 0.5, 0.5)
    assert measure.ratio([1.0, 4.0], [1.0, 1.0]).low >= 1


def test_samples_of_one_program_are_pooled_by_rounds():
    one, two = measure.Samples((1.0, 8.0), (2.0, 9.0)), measure.Samples((3.0, 2.0), (4.0, 1.0))
    assert measure.pooled([one, two]) == measure.Samples((2.0, 5.0), (3.0, 5.0))
    assert measure.pooled([one]) == one


def test_arms_take_turns():
    """The first to run changes, each runs as often as it is told to, `before` comes before each."""
    order = []
    arms = {name: lambda name=name: order.append(name) for name in "ab"}
    samples = measure.interleave(arms, 2, {"a": 2, "b": 1}, lambda: order.append("|"))
    assert "".join(order) == "|aa|b|b|aa"
    assert [len(sample.wall) for sample in samples.values()] == [2, 2]


def test_the_allocator_is_fixed_by_starting_again(monkeypatch):
    """Once: not when it is set already, nor when the default was asked for."""
    started = []
    monkeypatch.setattr(measure.os, "execve", lambda *call: started.append(call))
    monkeypatch.setattr(measure.sys, "orig_argv", ["python", "bin/backpass", "bench"])
    for name in measure.ALLOCATOR:
        monkeypatch.delenv(name, raising=False)
    measure.fix_allocator(keep_default=True)
    assert not started
    measure.fix_allocator(keep_default=False)
    assert started[0][1] == [measure.sys.executable, "bin/backpass", "bench"]
    assert measure.ALLOCATOR.items() <= started[0][2].items()
    for name, text in measure.ALLOCATOR.items():
        monkeypatch.setenv(name, text)
    measure.fix_allocator(keep_default=False)
    assert len(started) == 1


def test_differences_are_those_of_the_gradients():
    """At `CHECK_RATE` the update shows a gradient that is wrong by one part in a thousand."""
    params = {"w": jnp.array([1.0, -2.0]), "b": jnp.array([3.0])}
    grads = {"w": jnp.array([0.5, 0.25]), "b": jnp.array([1e-3])}

    def stepped(factor):
        rate = factor * CHECK_RATE
        moved = jax.tree.map(lambda p, g: np.asarray(p - rate * g), params, grads)
        return factor, jax.tree.leaves(moved)

    assert differences(params, stepped(1.0), stepped(1.0)) == (0.0, 0.0)
    loss, apart = differences(params, stepped(1.001), stepped(1.0))
    assert loss == pytest.approx(1e-3, rel=1e-2) and apart == pytest.approx(1e-3, rel=1e-2)


@pytest.mark.parametrize(
    ("suites", "kept"), [(["contrast"], True), (["contrast", "models"], False), ([], False)]
)
def test_tiny_programs_leave_malloc_as_it_is(suites, kept, monkeypatch):
    asked = []
    monkeypatch.setattr(bench, "fix_allocator", asked.append)
    monkeypatch.setattr(bench, "run_suites", lambda *_, **__: sys.exit())
    options = {"program": True, "compare": None, "default_allocator": False, "suites": suites}
    left = dict.fromkeys("size repeats seed passes precision".split())
    with pytest.raises(SystemExit):
        bench.run(argparse.Namespace(**options, **left, against="jax", models=""))
    assert asked == [kept]
