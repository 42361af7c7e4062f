"""PyTorch's models are ours: the same loss and the same gradients, or nothing is timed."""

import importlib.util
import warnings

import pytest

from backpass.bench.arms import differences, ours
from backpass.bench.models.sizes import SIZES
from backpass.bench.run import run
from backpass.bench.task import CHECK_RATE, Task
from backpass.ir.errors import ArgumentError

HAS_TORCH = importlib.util.find_spec("torch") is not None
pytestmark = pytest.mark.skipif(not HAS_TORCH, reason="PyTorch is not installed (extra 'bench')")


@pytest.mark.parametrize("name", SIZES["tiny"])
def test_the_same_step(name):
    from backpass.bench.arms import by_torch

    task = Task.of(SIZES["tiny"][name], seed=3)
    first = by_torch(task, compiled=False).first(CHECK_RATE)
    loss, grads = differences(task.params, ours(task).first(CHECK_RATE), first)
    assert loss < 1e-5 and grads < 1e-4


def test_rows_beside_torch():
    report = run(["models", "contrast"], size="tiny", models=["mlp"], repeats=1, against=["torch"])
    keys = [("models", "mlp"), ("contrast", "dynamic"), ("contrast", "compiled")]
    assert [row.key for row in report.rows] == [(*key, "torch") for key in keys]
    assert not report.failed and "torch" in report.environment


def test_torch_compile():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch's own
        report = run(["models"], size="tiny", models=["mlp"], repeats=1, against=["torch-compile"])
    (row,) = report.rows
    assert row.error is None and set(row.ratios) == {"time", "cpu", "compile"}


def test_products_in_fewer_bits():
    """Both cast operands of products, so that they are nearer to each other than to float32."""
    from backpass.bench.arms import by_torch, stock

    task = Task.of(SIZES["tiny"]["gpt"], seed=3, precision="bfloat16")
    whole = stock(task).first(CHECK_RATE)
    found = [arm.first(CHECK_RATE) for arm in (ours(task), by_torch(task, compiled=False))]
    for each in found:
        loss, grads = differences(task.params, each, whole)
        assert loss < 1e-2 and 1e-4 < grads < 1e-1
    report = run(
        ["models"], size="tiny", models=["gpt"], repeats=1, against=["torch"], precision="bfloat16"
    )
    assert not report.failed and report.options["precision"] == "bfloat16"


def test_no_compiler(monkeypatch):
    from backpass.bench.pytorch import setting

    monkeypatch.setattr(setting.shutil, "which", lambda name: None)
    setting.prepare(compiled=False)
    with pytest.raises(ArgumentError, match="C\\+\\+ compiler"):
        setting.prepare(compiled=True)
