"""`backpass diff`: dumps, files and stages; 0 for the same, 1 for others, 2 for bad use."""

import json

import pytest

from backpass.cli import diff
from backpass.cli.main import main

FILE = """
import jax
import jax.numpy as jnp
import numpy as np
import backpass as bp

NOISE = np.random.default_rng(0).standard_normal(500_000).astype(np.float32)

def steps(act):
    def step(w, x):
        value, grad = bp.value_and_grad(lambda w: jnp.mean(act(x @ w) ** 2))(w)
        return w - grad, value
    return step

tanh, sine, noisy = steps(jnp.tanh), steps(jnp.sin), steps(lambda h: jnp.sin(h) + jnp.sum(NOISE))

def broken(w, x):
    raise KeyError("mine")

def example_args():
    return jax.ShapeDtypeStruct((16, 8), jnp.float32), jax.ShapeDtypeStruct((4, 16), jnp.float32)
"""


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "diffed_model.py"
    path.write_text(FILE)
    return path


def run(*arguments):
    return main([str(each) for each in arguments])


@pytest.fixture
def dumps(file, tmp_path, capsys):
    """Folders of each program's dump."""
    for name in ("tanh", "sine", "noisy"):
        assert run("dump", f"{file}:{name}", "-o", tmp_path / name) == 0
    capsys.readouterr()
    return tmp_path


def test_two_dumps(dumps, capsys):
    assert run("diff", dumps / "tanh", dumps / "tanh") == 0
    assert capsys.readouterr().out == "no difference\n"
    assert run("diff", dumps / "tanh", dumps / "sine") == 1
    told = capsys.readouterr().out
    assert "- f32[4,8] = tanh(f32[4,8])" in told and "+ f32[4,8] = sin(f32[4,8])" in told
    assert "diffed_model.py:" in told and "dot_general" not in told
    assert "\x1b" not in told, "no terminal, no colours"


def test_files_programs_and_dumps_mix(dumps, file, capsys):
    assert run("diff", dumps / "sine" / "000_traced.txt", dumps / "tanh" / "000_traced.txt") == 1
    assert run("diff", dumps / "sine", f"{file}:sine") == 0
    assert run("diff", dumps / "sine", f"{file}:tanh", "--stages", "autodiff") == 1


def test_two_stages(dumps, file, capsys):
    assert run("diff", f"{file}:tanh", "--stages", "traced,autodiff") == 1
    from_program = capsys.readouterr().out
    assert run("diff", dumps / "tanh", "--stages", "traced,autodiff") == 1
    assert capsys.readouterr().out == from_program
    specs = ["f32[2,2]", "f32[2,2]"]
    assert run("diff", f"{file}:tanh", *specs, "--stages", "traced,traced") == 0


def test_what_text_cannot_bring_back_is_compared_by_name(dumps, file, capsys):
    text = (dumps / "noisy" / "000_traced.txt").read_text()
    assert "opaque<" in text
    assert run("diff", dumps / "noisy", f"{file}:noisy", "--stages", "traced") == 0
    assert run("diff", dumps / "noisy", dumps / "sine", "--stages", "traced") == 1


def test_json(dumps, capsys):
    assert run("diff", dumps / "tanh", dumps / "sine", "--json") == 1
    told = json.loads(capsys.readouterr().out)
    assert not told["same"] and told["ops"]["sin"] == [0, 1]
    assert {each["kind"] for each in told["changes"]} >= {"added", "removed"}


@pytest.mark.parametrize(
    "arguments",
    [
        ("tanh",),
        ("tanh", "sine", "noisy"),
        ("tanh", "none"),
        ("tanh", "sine", "--stages", "no"),
        ("tanh", "f32[2]", "--stages", "traced,dce"),
        ("tanh", "sine", "--stages", "a,b,c"),
    ],
)
def test_bad_use_is_two(arguments, dumps, monkeypatch, capsys):
    monkeypatch.chdir(dumps)
    assert run("diff", *arguments) == 2
    assert capsys.readouterr().err.startswith("backpass: ")


def test_trouble_is_two_as_well(dumps, file, capsys):
    """One means that they differ, and nothing else."""
    (dumps / "bad.txt").write_text("graph")
    assert run("diff", dumps / "tanh", dumps / "bad.txt") == 2
    assert run("diff", f"{file}:broken", dumps / "tanh") == 2
    assert "mine" in capsys.readouterr().err
    (dumps / "sine" / "manifest.json").write_text('{"schema": "backpass.dump 1", "files": []}')
    assert run("diff", dumps / "tanh", dumps / "sine") == 2


def test_colours_on_a_terminal(monkeypatch):
    monkeypatch.setattr(diff.sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert diff._coloured("- a\n  + b\nc") == "\x1b[31m- a\x1b[0m\n\x1b[32m  + b\x1b[0m\nc"
    monkeypatch.setenv("NO_COLOR", "1")
    assert diff._coloured("- a") == "- a"
