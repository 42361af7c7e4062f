"""The GPT over devices: every strategy gives the losses of one device, in two processes as well."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

import backpass as bp

SCRIPT = Path(__file__).parents[2] / "examples" / "distributed.py"
SIZES = {"layers": 8, "width": 16, "heads": 8, "context": 8, "vocabulary": 256, "batch": 8}


@pytest.fixture(scope="module")
def alone(load_example):
    """Losses of two steps on one device."""
    strategies = load_example("strategies")
    with pytest.MonkeyPatch.context() as patch:
        one = jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
        patch.setattr(strategies, "mesh_of", lambda strategy: one)
        return strategies.train("data", 2, strategies.Sizes(**SIZES), lambda line: None)


@pytest.mark.parametrize("strategy", ["data", "tensor", "fsdp", "pipeline"])
def test_losses_are_those_of_one_device(load_example, alone, strategy):
    strategies = load_example("strategies")
    told = []
    losses = strategies.train(strategy, 2, strategies.Sizes(**SIZES), told.append)
    np.testing.assert_allclose(losses, alone, rtol=2e-6)
    assert len(told) == 2 and losses[1] < losses[0]


def command(*options):
    """Of a run in two processes, and what it runs in."""
    sizes = [f"--{name}={SIZES[name]}" for name in ("layers", "width", "context", "batch")]
    over = ["--strategy=fsdp", "--processes=2", "--devices=4"]
    env = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    return [sys.executable, str(SCRIPT), *over, *sizes, *options], env


def run(*options):
    line, env = command(*options)
    done = subprocess.run(line, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done


def test_two_processes(alone):
    done = run("--steps=2")
    assert "4 devices in 2 processes" in done.stdout and "step 2 of 2" in done.stderr
    last = done.stdout.splitlines()[-1]  # gloo writes there too
    losses = [float(word) for word in last.partition(": ")[2].split()]
    np.testing.assert_allclose(losses, alone, rtol=2e-6, atol=1e-6)


def killed(step, *options):
    """Run in two processes until a step is told, and kill all of them at once."""
    line, env = command(*options)
    # In a session of its own, so that no process of it is left.
    running = subprocess.Popen(
        line,
        env=env,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        assert any(f"step {step} of" in told for told in running.stderr)
    finally:
        os.killpg(running.pid, signal.SIGKILL)
        running.communicate()


def test_two_processes_that_are_killed_go_on(load_example, tmp_path):
    """To the same state, bit for bit; one process reads what two saved."""
    first, second = tmp_path / "first", tmp_path / "second"
    killed(5, "--steps=10000", f"--saves={first}")
    shutil.copytree(first, second)
    strategies = load_example("strategies")
    _, like, _ = strategies.prepared("fsdp", strategies.Sizes(**SIZES))
    last, expected = bp.restore(first, like)
    assert last >= 3  # that of step 4 may not be whole
    saves = sorted(int(path.name) for path in second.iterdir() if path.name.isdigit())
    for step in saves[1:]:
        shutil.rmtree(second / str(step))
    done = run(f"--steps={last}", f"--saves={second}")
    assert f"step {saves[0] + 1} of {last}" in done.stderr
    assert f"step {saves[0]} of {last}" not in done.stderr
    again, state = bp.restore(second, like)
    assert again == last > saves[0]
    for found, wanted in zip(jax.tree.leaves(state), jax.tree.leaves(expected), strict=True):
        assert np.asarray(found).tobytes() == np.asarray(wanted).tobytes()
