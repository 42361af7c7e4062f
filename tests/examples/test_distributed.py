"""The GPT over devices: every strategy gives the losses of one device, in two processes as well."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

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


def test_two_processes(alone):
    sizes = [f"--{name}={SIZES[name]}" for name in ("layers", "width", "context", "batch")]
    command = [
        sys.executable,
        str(SCRIPT),
        "--strategy=fsdp",
        "--processes=2",
        "--devices=4",
        "--steps=2",
        *sizes,
    ]
    env = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "4 devices in 2 processes" in done.stdout and "step 2 of 2" in done.stderr
    last = done.stdout.splitlines()[-1]  # gloo writes there too
    losses = [float(word) for word in last.partition(": ")[2].split()]
    np.testing.assert_allclose(losses, alone, rtol=2e-6, atol=1e-6)
