"""Each suite at a tiny size: which rows it gives, and what is in them."""

from types import SimpleNamespace

import pytest

from backpass.bench import run as module
from backpass.bench.arms import POLICIES
from backpass.bench.measure import Samples
from backpass.bench.run import run
from backpass.bench.suites import steps
from backpass.bench.suites.memory import shared
from backpass.bench.suites.table import SUITES
from backpass.bench.task import Arm
from backpass.ir.errors import ArgumentError


def tiny(suite, models=(), **options):
    """Its rows by case and peer, after two rounds."""
    report = run([suite], size="tiny", models=models, repeats=2, **options)
    assert not report.failed and {row.suite for row in report.rows} == {suite}
    for row in report.rows:
        assert set(row.ratios) <= set(SUITES[suite].ratios)
        assert all(0 < r.low <= r.median <= r.high for r in row.ratios.values())
    return {(row.case, row.peer): row for row in report.rows}


def test_models():
    found = tiny("models", ["mlp"], against=["jax", "jax-checkpoint"])
    policies = [f"jax-checkpoint {name}" for name in list(POLICIES)[:3]]
    assert list(found) == [("mlp", peer) for peer in ("jax", *policies)]
    row = found["mlp", "jax"]
    assert set(row.ratios) == {"time", "cpu", "temp", "compile"}
    assert row.figures["loss"] < 1e-5 and row.figures["grads"] < 1e-4
    # A product of the forward pass has two in the backward pass, or one where its operand is data.
    products = 2 * 8 * (12 * 16 + 16 * 16 + 16 * 4)
    assert row.figures["flops"] > 3 * products - 2 * 8 * 12 * 16
    assert row.figures["utilisation"] > 0 and row.figures["traffic"] > 0
    assert len(row.figures["seconds"]) == len(row.figures["peer_seconds"]) == 2


def test_models_in_fewer_bits():
    row = tiny("models", ["gpt"], precision="bfloat16")["gpt", "jax"]
    assert 1e-4 < row.figures["grads"] < 1e-1


def test_memory():
    found = tiny("memory", against=["jax", "jax-checkpoint"])
    assert len(found) == 6
    for (_, peer), row in found.items():
        assert row.figures["peak_bytes"] <= row.figures["budget_bytes"]
        assert ("rival" in row.figures) == (peer == "jax-checkpoint")
    least = found["mlp budget 3 of 3", "jax"].figures
    assert least["budget_bytes"] < found["mlp budget 1 of 3", "jax"].figures["budget_bytes"]


def test_programs_that_are_equal_share_their_times():
    def arm(text):
        program = SimpleNamespace(as_text=lambda: text)
        return Arm("x", lambda: None, lambda rate: (0.0, []), program=program)

    arms, times = [arm("a"), arm("b"), arm("a")], [Samples((t,), (t,)) for t in (1.0, 2.0, 4.0)]
    found = shared(arms, times)
    assert [found[id(each)].wall for each in arms] == [(2.5,), (2.0,), (2.5,)]


def test_fusion():
    found = tiny("fusion", ["loss_z_loss", "gru_6"])
    assert list(found) == [("loss_z_loss", "jax"), ("gru_6", "jax")]
    assert all(row.figures["grads"] < 1e-4 for row in found.values())


def test_contrast():
    found = tiny("contrast")
    assert list(found) == [(m, p) for m in ("dynamic", "compiled") for p in ("jax", "jax ops")]


def test_compile():
    (row,) = tiny("compile", ["gpt 1 layers"]).values()
    assert set(row.ratios) == {"total", "trace", "lower", "xla"}
    assert {"autodiff", "canonicalise"} <= row.figures["pass_seconds"].keys()
    assert row.figures["plan_seconds"] > 0 and row.figures["equations"] > 0
    for each in (row.figures["seconds"], row.figures["peer_seconds"]):
        assert len(each) == 2 and all(min(first.values()) > 0 for first in each)


def test_dispatch():
    found = tiny("dispatch")
    assert [case for case, _ in found] == ["3 to 3", "3 to 3, donated", "3 to 1", "1 to 1"]


def test_a_result_that_differs_is_an_error(monkeypatch):
    """And nothing is timed."""
    monkeypatch.setattr(steps, "ROUNDING", (-1.0, -1.0))
    (row,) = run(["models"], size="tiny", models=["mlp"], repeats=1).rows
    assert row.ratios == {} and "expected loss within" in row.error


def test_a_case_that_fails_is_a_row(monkeypatch):
    """And no other row is lost."""
    measured = module._measured

    def fails(suite, name, what, setup):
        return measured(suite, name, (lambda: 1 / 0) if name == "mlp" else what, setup)

    monkeypatch.setattr(module, "_measured", fails)
    report = run(["models"], size="tiny", models=["mlp", "vae"], repeats=1)
    assert [row.error for row in report.rows] == ["ZeroDivisionError: division by zero", None]
    assert "failed" in str(report) and "- models / mlp / jax: ZeroDivisionError" in str(report)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"suites": ["speed"]}, "no suite 'speed'"),
        ({"against": ["numpy"]}, "no peer 'numpy'"),
        ({"size": "huge"}, "no size 'huge'"),
        ({"repeats": 0}, "at least one round"),
        ({"suites": ["dispatch"], "against": ["jax-checkpoint"]}, "nothing to run"),
        ({"suites": ["models"], "models": ["mlp", "alexnet"]}, "no case 'alexnet'"),
    ],
)
def test_bad_use(options, words):
    with pytest.raises(ArgumentError, match=words):
        run(**options)


def test_torch_that_is_not_installed(monkeypatch):
    monkeypatch.setattr(module, "_has", lambda package: False)
    with pytest.raises(ArgumentError, match=r"pip install 'backpass\[bench\]'"):
        run(["models"], against=["torch"])
