"""States that are spread over several processes: each saves its part, and reads it."""

import socket
import subprocess
import sys

import jax
import numpy as np
import pytest

import backpass as bp
from runtime import spread


def start(mode, folder):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    running = [
        subprocess.Popen(
            [sys.executable, spread.__file__, mode, folder, str(rank), str(port)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(spread.PROCESSES)
    ]
    for process in running:
        told, errors = process.communicate(timeout=200)
        assert process.returncode == 0, errors
        assert "all came back" in told


def put(array, is_divided):
    if isinstance(array, jax.ShapeDtypeStruct):
        return None
    return jax.numpy.asarray(array)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """What two processes saved, and restored: also what was donated while it was written."""
    folder = tmp_path_factory.mktemp("saves")
    start("save", folder)
    return folder


def test_one_process_reads_what_several_saved(saved):
    for step in range(1, spread.STEPS + 1):
        like = spread.state_of(0, put) | {"numpy": np.arange(step)}
        told, found = bp.restore(saved, like, step=step)
        assert told == step
        spread.same(found, spread.state_of(step, put))


def test_several_processes_read_what_one_saved(tmp_path):
    with bp.Saver(tmp_path, keep=None) as saver:
        for step in range(1, spread.STEPS + 1):
            saver.save(step, spread.state_of(step, put))
    start("restore", tmp_path)
