"""Accuracy is not enough: tumours where few are malignant, watched while a network learns.

    python examples/imbalanced.py               seconds on two CPU cores
    python examples/imbalanced.py --compile     the same step, as one static graph
    python examples/imbalanced.py --weight 12   a missed tumour counts twelve times

Scikit-learn's breast cancer data, of whose malignant tumours one in eight is kept, so that 7
percent are malignant: who calls all of them benign is right in 93 of 100. So precision and recall
are told beside accuracy, after each epoch, with the losses on training and on validation data. The
network is far larger than the data asks for, and overfits: the history notes since when.

Source: Street, Wolberg and Mangasarian 1993 (the data, 30 measures of each tumour).
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import matplotlib
import numpy as np
from sklearn.datasets import load_breast_cancer
from sklearn.metrics import accuracy_score, precision_score, recall_score
from sklearn.model_selection import train_test_split

import backpass as bp
from backpass import dynamic as dyn
from backpass.dynamic import nn
from backpass.dynamic.diagnostics import History, Monitor
from backpass.dynamic.nn import functional as F

matplotlib.use("Agg")
from matplotlib import pyplot as plt  # noqa: E402  (the backend is chosen first)


class Tumours(NamedTuple):
    """Measures `f32[n, 30]`, of mean 0 and variance 1, and 1 for malignant, `f32[n]`."""

    measures: np.ndarray
    malignant: np.ndarray


def read_tumours(seed: int, kept: float = 0.125) -> tuple[Tumours, Tumours, Tumours]:
    """Data to train on, validate on and test on: 50, 25 and 25 percent, tumours of both kinds."""
    data = load_breast_cancer()
    malignant = data.target == 0
    rng = np.random.default_rng(seed)
    chosen = rng.permutation(np.flatnonzero(malignant))[: round(kept * malignant.sum())]
    rows = np.sort(np.concatenate([chosen, np.flatnonzero(~malignant)]))
    all_of_them = Tumours(data.data[rows], malignant[rows].astype(np.float32))

    def split(tumours: Tumours, share: float) -> tuple[Tumours, Tumours]:
        parts = train_test_split(
            *tumours, test_size=share, random_state=seed, stratify=tumours.malignant
        )
        return Tumours(*parts[0::2]), Tumours(*parts[1::2])

    training, rest = split(all_of_them, 0.5)
    validation, test = split(rest, 0.5)
    mean, deviation = training.measures.mean(0), training.measures.std(0)

    def scaled(tumours: Tumours) -> Tumours:
        measures = (tumours.measures - mean) / deviation
        return tumours._replace(measures=measures.astype(np.float32))

    return scaled(training), scaled(validation), scaled(test)


def network(width: int) -> nn.Module:
    """Two hidden layers; one score, above 0 for malignant."""
    sizes = nn.Linear(30, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU()
    return nn.Sequential(*sizes, nn.Linear(width, 1))


def loss_of(scores: dyn.Tensor, malignant: dyn.Tensor, weight: float = 1.0) -> dyn.Tensor:
    """Mean cross-entropy in nats; malignant tumours count `weight` times."""
    counts = 1 + (weight - 1) * malignant
    each = F.softplus(scores) - scores * malignant
    return (each * counts).sum() / counts.sum()


def batches(tumours: Tumours, rng: np.random.Generator, size: int) -> Iterator[list[dyn.Tensor]]:
    """The data in a random order, `size` at a time; a remainder waits for the next epoch."""
    order = rng.permutation(tumours.malignant.size)
    for start in range(0, order.size - size + 1, size):
        chosen = order[start : start + size]
        yield [dyn.tensor(x[chosen]) for x in tumours]


def score(model: nn.Module, tumours: Tumours) -> dict[str, float]:
    """Loss, accuracy; precision: of those called malignant, who is; recall: of those, who was."""
    with dyn.no_grad():
        scores = model(dyn.tensor(tumours.measures)).squeeze(-1)
        loss = loss_of(scores, dyn.tensor(tumours.malignant)).item()
    called, truth = scores.numpy() > 0, tumours.malignant > 0
    return {
        "loss": loss,
        "accuracy": accuracy_score(truth, called),
        "precision": precision_score(truth, called, zero_division=0.0),
        "recall": recall_score(truth, called, zero_division=0.0),
    }


def train(
    model: nn.Module, training: Tumours, validation: Tumours, options: argparse.Namespace
) -> tuple[History, Monitor]:
    """Train for `options.epochs`; what was seen meanwhile."""
    optimizer = dyn.optim.AdamW(model.named_parameters(), lr=options.rate, weight_decay=0.0)

    def step(measures: dyn.Tensor, malignant: dyn.Tensor) -> dyn.Tensor:
        optimizer.zero_grad()
        loss = loss_of(model(measures).squeeze(-1), malignant, options.weight)
        loss.backward()
        optimizer.step()
        return loss

    run = bp.compile(step) if options.compile else step
    history, monitor = History(), Monitor(model)
    rng = np.random.default_rng(options.seed)
    for _ in range(options.epochs):
        for batch in batches(training, rng, options.batch):
            run(*batch)
            monitor.observe()
        on = score(model, validation)
        history.add(score(model, training)["loss"], on.pop("loss"), **on)
    return history, monitor


def draw(history: History, monitor: Monitor, benign: float, path: Path) -> None:
    """Losses by epoch, scores by epoch, gradient norms by step."""
    epochs = range(1, len(history.training) + 1)
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(13, 4), layout="constrained")
    left.plot(epochs, history.training, label="training", linewidth=2)
    left.plot(epochs, history.validation, label="validation", linewidth=2)
    lowest = history.validation[history.best - 1]
    left.plot([history.best], [lowest], "o", color="C1", label=f"lowest, epoch {history.best}")
    left.set(title="Loss", xlabel="epoch", ylabel="nats per tumour", ylim=(0, None))

    for name, colour in (("accuracy", "grey"), ("precision", "C2"), ("recall", "C3")):
        values = [scores[name] for scores in history.scores]
        middle.plot(epochs, values, label=name, color=colour, linewidth=2)
    middle.axhline(benign, linestyle="--", color="grey", label="accuracy of 'all are benign'")
    middle.set(title="Scores on validation data", xlabel="epoch", ylim=(0, 1.02))

    for i, name in enumerate(monitor.names):
        if name.endswith("weight"):
            right.semilogy(monitor.gradients[:, i], label=name, linewidth=1)
    right.set(title="Gradients, root mean squares", xlabel="step")
    for axes in (left, middle, right):
        axes.grid(alpha=0.25)
        axes.legend(frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The options; `--tiny` is a preset that runs in seconds."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--rate", type=float, default=3e-3)
    parser.add_argument("--weight", type=float, default=1.0, help="of a malignant tumour")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--compile", action="store_true", help="compile the step")
    parser.add_argument("--png", type=Path, default=Path("examples/out/imbalanced.png"))
    parser.add_argument("--tiny", action="store_true", help="eight epochs of a small network")
    if parser.parse_known_args(argv)[0].tiny:
        parser.set_defaults(epochs=8, width=16)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> tuple[dict[str, float], History, Monitor]:
    """Train, tell, draw; returns the scores on test data, and what was seen."""
    options = parse(argv)
    training, validation, test = read_tumours(options.seed)
    dyn.manual_seed(options.seed)
    model = network(options.width)
    history, monitor = train(model, training, validation, options)

    print(history, end="\n\n")
    print(monitor, end="\n\n")
    benign = float(1 - test.malignant.mean())
    scores = score(model, test)
    print(f"all benign   accuracy {benign:.3f}, precision 0.000, recall 0.000")
    print("test         " + ", ".join(f"{k} {x:.3f}" for k, x in scores.items() if k != "loss"))
    draw(history, monitor, float(1 - validation.malignant.mean()), options.png)
    print(f"\npicture  {options.png}")
    return scores, history, monitor


if __name__ == "__main__":
    main()
