"""The byte-level GPT learns, and leaves behind what it says."""

import math

import jax
import numpy as np
import pytest

import backpass as bp

PNG = b"\x89PNG\r\n\x1a\n"


def test_main_learns_and_reports(load_example, tmp_path, capsys):
    """Validation falls below the entropy of single bytes, and the files told on stdout exist."""
    points = load_example("gpt").main(["--tiny", "--out", str(tmp_path)])

    (_, before), *_, (steps, after) = points["validation"]
    told = capsys.readouterr().out
    unigram = float(told.partition("unigram      ")[2].split()[0])
    assert len(points["training"]) == steps == 120
    assert after < unigram < before
    assert f"validation   {after:.3f} bits per byte after {steps} steps" in told

    assert (tmp_path / "loss.png").read_bytes().startswith(PNG)
    assert str(tmp_path / "loss.png") in told and str(tmp_path / "graphs") in told
    assert list((tmp_path / "graphs").glob("*.dot"))
    dumps = sorted((tmp_path / "graphs").glob("*.txt"))
    assert dumps[0].name == "000_traced.txt" and len(dumps) > 1
    for path in dumps:
        assert str(bp.ir.parse(path.read_text())) == path.read_text()


def test_time_ends_training(load_example, tmp_path):
    """Without a number of steps the clock decides."""
    arguments = ["--tiny", "--steps", "1000000", "--minutes", "0.02", "--out", str(tmp_path)]
    points = load_example("gpt").main(arguments)
    assert 1 < points["validation"][-1][0] < 1_000_000


def test_the_future_is_hidden(load_example):
    """A byte changes no prediction before it, and the ones from it on."""
    gpt = load_example("gpt")
    params = gpt.init(jax.random.key(0), layers=1, width=gpt.HEAD)
    logits = jax.jit(gpt.logits)
    tokens = np.arange(12, dtype=np.int32)[None]
    changed = tokens.copy()
    changed[0, 7] = 200
    difference = np.abs(logits(params, tokens) - logits(params, changed)).max((0, 2))
    assert (difference[:7] == 0).all() and (difference[7:] > 0).all()


@pytest.mark.parametrize("limit", [200_000, 400_000])
def test_the_split_is_by_file_and_repeatable(load_example, limit):
    """No byte is lost, the same files come each time, and a tenth of the files validate."""
    corpus = load_example("corpus")
    training, validation = corpus.read_library(limit)
    again = corpus.read_library(limit)
    np.testing.assert_array_equal(training, again[0])
    np.testing.assert_array_equal(validation, again[1])
    assert training.size + validation.size >= limit and 0 < validation.size < training.size


def test_entropy_and_windows(load_example):
    """Against values known by hand."""
    corpus = load_example("corpus")
    assert corpus.entropy(np.frombuffer(b"aaaa", np.uint8)) == 0
    assert math.isclose(corpus.entropy(np.frombuffer(b"aabc", np.uint8)), 1.5)
    text = np.arange(10, dtype=np.uint8)
    np.testing.assert_array_equal(corpus.even_windows(text, 2, 3), [[0, 1, 2, 3], [6, 7, 8, 9]])
    batch = corpus.random_windows(text, np.random.default_rng(0), 5, 3)
    assert batch.shape == (5, 4) and (np.diff(batch) == 1).all()
