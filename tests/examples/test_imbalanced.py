"""The thinned data are imbalanced, both designs learn from them alike, and the scores are told."""

import numpy as np
import pytest


@pytest.fixture(scope="module")
def example(load_example):
    return load_example("imbalanced")


def test_few_tumours_are_malignant(example):
    parts = example.read_tumours(0)
    assert sum(part.malignant.size for part in parts) == 357 + 26  # of 569, with 212 malignant
    for part in parts:
        assert 0.05 < part.malignant.mean() < 0.09
    np.testing.assert_allclose(parts[0].measures.mean(0), 0, atol=1e-5)
    rows = [tuple(row) for part in parts for row in part.measures]
    assert len(set(rows)) == len(rows)  # none stands in two parts


def test_a_missed_tumour_weighs_more(example):
    scores, malignant = (example.dyn.tensor(x) for x in ([-2.0, -2.0], [1.0, 0.0]))
    missed, called = np.log1p(np.exp(2.0)), np.log1p(np.exp(-2.0))
    plain, weighted = (example.loss_of(scores, malignant, w).item() for w in (1.0, 3.0))
    assert plain == pytest.approx((missed + called) / 2, rel=1e-5)
    assert weighted == pytest.approx((3 * missed + called) / 4, rel=1e-5)


def test_main_trains_alike_in_both_designs(example, tmp_path, capsys):
    path = tmp_path / "imbalanced.png"
    scores, history, monitor = example.main(["--tiny", "--png", str(path)])
    told = capsys.readouterr().out
    assert path.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    assert "precision" in told and "recall" in told and str(path) in told
    assert history.training[-1] < 0.3 * history.training[0]
    assert history.scores[0]["recall"] < history.scores[-1]["recall"]
    assert monitor.gradients.shape == (8 * 11, 6)
    assert monitor.findings == ()
    assert scores["recall"] > 0.5 and scores["accuracy"] > 0.93

    _, compiled, _ = example.main(["--tiny", "--compile", "--png", str(path)])
    np.testing.assert_allclose(compiled.training, history.training, rtol=1e-3)


def test_main_notes_overfitting(example, tmp_path, capsys):
    options = ["--epochs", "14", "--width", "64", "--png", str(tmp_path / "x.png")]
    _, history, _ = example.main(options)
    assert history.best < 12
    assert history.note and history.note in capsys.readouterr().out
