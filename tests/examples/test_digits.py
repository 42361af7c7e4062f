"""The digits network learns, and leaves behind what it says."""

import jax
import jax.numpy as jnp
import numpy as np

import backpass as bp

PNG = b"\x89PNG\r\n\x1a\n"


def test_main_learns_and_reports(load_example, tmp_path, capsys):
    """Two epochs read nine digits of ten, and the files told on stdout exist."""
    scores = load_example("digits").main(["--tiny", "--out", str(tmp_path)])

    told = capsys.readouterr().out
    assert set(scores) == {"loss", "accuracy", "precision", "recall"}
    assert scores["accuracy"] > 0.85 and scores["precision"] > 0.85 and scores["recall"] > 0.85
    rows = [line.split() for line in told.splitlines() if line[:5].strip().isdigit()]
    assert [row[0] for row in rows] == ["1", "2"] and all(len(row) == 6 for row in rows)
    first, second = (float(row[1]) for row in rows)
    assert second < first < np.log(10)

    assert (tmp_path / "loss.png").read_bytes().startswith(PNG)
    assert str(tmp_path / "loss.png") in told and str(tmp_path / "graphs") in told
    assert list((tmp_path / "graphs").glob("*.dot"))
    dumps = sorted((tmp_path / "graphs").glob("*.txt"))
    assert dumps[0].name == "000_traced.txt" and len(dumps) > 1
    for path in dumps:
        assert str(bp.ir.parse(path.read_text())) == path.read_text()


def test_the_three_sets_are_disjoint(load_example):
    """Every image is in one set, and each set shows every digit."""
    sets = load_example("digits").read_digits(seed=0)
    assert sum(images.digits.size for images in sets) == 1797
    assert all(set(images.digits) == set(range(10)) for images in sets)
    sizes = [images.digits.size / 1797 for images in sets]
    np.testing.assert_allclose(sizes, [0.6, 0.2, 0.2], atol=0.01)


def test_an_epoch_shows_each_image_once(load_example):
    """But for the remainder."""
    digits = load_example("digits")
    images = digits.Images(np.arange(10.0), np.arange(10))
    seen = [
        digit
        for batch in digits.batches(images, np.random.default_rng(0), 4)
        for digit in batch.digits
    ]
    assert len(seen) == len(set(seen)) == 8


def test_dropout_keeps_the_mean(load_example):
    """A share is set to zero, the rest is scaled."""
    digits = load_example("digits")
    dropped = digits.dropout(jax.random.key(0), jnp.ones(10_000))
    assert abs((dropped == 0).mean() - digits.DROPOUT) < 0.02
    assert abs(dropped.mean() - 1) < 0.05
