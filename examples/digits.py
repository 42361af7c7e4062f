"""A small convolutional network that reads scikit-learn's handwritten digits.

    python examples/digits.py               well under a minute on two CPU cores

`train_step`, which is forward pass with dropout, backward pass and Adam, is one function that
`bp.compile` turns into one program. After each epoch the loss on training and on validation data
is told, with accuracy, precision and recall on validation data, the mean over the ten classes.

Source: Alpaydin and Kaynak 1998 (the digits, 8 by 8 pixels); Srivastava et al. 2014 (dropout);
Kingma and Ba 2015 (Adam).
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.datasets import load_digits
from sklearn.metrics import accuracy_score, precision_score, recall_score
from sklearn.model_selection import train_test_split
from tqdm import tqdm

import backpass as bp
from report import Curve, print_results, save_dumps

RATE = 2e-3
DROPOUT = 0.5  # the share of hidden units that a training step leaves out
OPTIMISER = optax.adam(RATE)


class Images(NamedTuple):
    """Pixels `f32[n, 8, 8, 1]` between 0 and 1, and the digits that they show, `int32[n]`."""

    pixels: np.ndarray
    digits: np.ndarray


def read_digits(seed: int) -> tuple[Images, Images, Images]:
    """Digits to train on, validate on and test on: 60, 20 and 20 percent, each class in each."""
    data = load_digits()
    pixels = (data.images[..., None] / 16.0).astype(np.float32)
    digits = data.target.astype(np.int32)

    def split(images: Images, share: float) -> tuple[Images, Images]:
        parts = train_test_split(
            *images, test_size=share, random_state=seed, stratify=images.digits
        )
        return Images(*parts[0::2]), Images(*parts[1::2])

    rest, test = split(Images(pixels, digits), 0.2)
    training, validation = split(rest, 0.25)
    return training, validation, test


# The model


def init(key: jax.Array) -> dict:
    """Parameters; weights are normal with variance `2 / (inputs of a unit)` (He et al. 2015)."""
    shapes = {
        "conv1": (3, 3, 1, 32),
        "conv2": (3, 3, 32, 64),
        "hidden": (4 * 4 * 64, 128),
        "output": (128, 10),
    }
    params = {}
    for name, shape in shapes.items():
        key, subkey = jax.random.split(key)
        weight = np.sqrt(2 / np.prod(shape[:-1])) * jax.random.normal(subkey, shape)
        params[name] = {"weight": weight, "bias": jnp.zeros(shape[-1])}
    return params


def convolve(layer: dict, x: jax.Array) -> jax.Array:
    """A 3 by 3 convolution over `f32[batch, row, column, channel]`, the picture's size kept."""
    dimensions = ("NHWC", "HWIO", "NHWC")
    y = jax.lax.conv_general_dilated(
        x, layer["weight"], window_strides=(1, 1), padding="SAME", dimension_numbers=dimensions
    )
    return y + layer["bias"]


def pool(x: jax.Array) -> jax.Array:
    """The largest of each 2 by 2 pixels."""
    window = (1, 2, 2, 1)
    return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, window, window, "VALID")


def dropout(key: jax.Array, x: jax.Array) -> jax.Array:
    """Set a share `DROPOUT` of `x` to zero and scale the rest, so that the mean stays."""
    kept = jax.random.bernoulli(key, 1 - DROPOUT, x.shape)
    return jnp.where(kept, x / (1 - DROPOUT), 0.0)


def logits(params: dict, pixels: jax.Array, key: jax.Array | None = None) -> jax.Array:
    """`f32[batch, 10]`; with a `key`, under dropout."""
    x = jax.nn.relu(convolve(params["conv1"], pixels))
    x = pool(jax.nn.relu(convolve(params["conv2"], x)))
    x = x.reshape(x.shape[0], -1)
    x = jax.nn.relu(x @ params["hidden"]["weight"] + params["hidden"]["bias"])
    if key is not None:
        x = dropout(key, x)
    return x @ params["output"]["weight"] + params["output"]["bias"]


def loss_of(scores: jax.Array, digits: jax.Array) -> jax.Array:
    """Mean cross-entropy in nats."""
    return optax.softmax_cross_entropy_with_integer_labels(scores, digits).mean()


# What is compiled


@bp.compile(donate_argnums=(0, 1))
def train_step(params, opt_state, batch, key):
    """One step of Adam."""

    def loss_fn(params):
        return loss_of(logits(params, batch.pixels, key), batch.digits)

    loss, grads = bp.value_and_grad(loss_fn)(params)
    updates, opt_state = OPTIMISER.update(grads, opt_state, params)
    return optax.apply_updates(params, updates), opt_state, loss


@bp.compile
def predict(params, images):
    """The loss on `images`, without dropout, and the digit that each most likely shows."""
    scores = logits(params, images.pixels)
    return loss_of(scores, images.digits), scores.argmax(axis=-1)


# Training


def batches(images: Images, rng: np.random.Generator, size: int) -> Iterator[Images]:
    """`images` in a random order, `size` at a time; a remainder waits for the next epoch."""
    order = rng.permutation(images.digits.size)
    for start in range(0, order.size - size + 1, size):
        chosen = order[start : start + size]
        yield Images(images.pixels[chosen], images.digits[chosen])


def score(params: dict, images: Images) -> dict[str, float]:
    """Loss, accuracy, and precision and recall averaged over the classes."""
    loss, predicted = predict(params, images)
    truth, predicted = images.digits, np.asarray(predicted)
    return {
        "loss": float(loss),
        "accuracy": accuracy_score(truth, predicted),
        "precision": precision_score(truth, predicted, average="macro", zero_division=0.0),
        "recall": recall_score(truth, predicted, average="macro", zero_division=0.0),
    }


def train(params: dict, training: Images, validation: Images, options: argparse.Namespace):
    """Train for `options.epochs`.

    Returns:
      Parameters, and the points `(epoch, loss)` of training and of validation data.
    """
    rng = np.random.default_rng(options.seed)
    keys = jax.random.key(options.seed + 1)
    opt_state = OPTIMISER.init(params)
    learnt, checked = [], []
    print("epoch   training  validation   accuracy  precision  recall")
    steps = training.digits.size // options.batch
    with tqdm(total=options.epochs * steps, desc="training", unit="step") as bar:
        for epoch in range(1, options.epochs + 1):
            for batch in batches(training, rng, options.batch):
                keys, key = jax.random.split(keys)
                params, opt_state, loss = train_step(params, opt_state, batch, key)
                bar.set_postfix_str(f"loss {float(loss):.4f}", refresh=False)
                bar.update()
            learnt.append((epoch, score(params, training)["loss"]))
            on = score(params, validation)
            checked.append((epoch, on["loss"]))
            tqdm.write(
                f"{epoch:5}   {learnt[-1][1]:8.4f}  {on['loss']:10.4f}   "
                f"{on['accuracy']:8.3f}  {on['precision']:9.3f}  {on['recall']:6.3f}"
            )
    return params, learnt, checked


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The options; `--tiny` is a preset that runs in seconds."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "out" / "digits")
    parser.add_argument("--tiny", action="store_true", help="two epochs")
    if parser.parse_known_args(argv)[0].tiny:
        parser.set_defaults(epochs=2)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> dict[str, float]:
    """Train, draw the curve, write the dumps; returns the scores on test data."""
    options = parse(argv)
    training, validation, test = read_digits(options.seed)
    params = init(jax.random.key(options.seed))

    batch = Images(training.pixels[: options.batch], training.digits[: options.batch])
    lowered = train_step.lower(params, OPTIMISER.init(params), batch, jax.random.key(0))
    dumps = save_dumps(lowered, options.out / "graphs")
    params, learnt, checked = train(params, training, validation, options)

    scores = score(params, test)
    print("\ntest         " + ", ".join(f"{name} {x:.3f}" for name, x in scores.items()))
    curve = Curve(
        title="A convolutional network on handwritten digits",
        xlabel="epoch",
        ylabel="loss (nats per image)",
        series={"training": learnt, "validation": checked},
        levels={},
    )
    print_results(curve.save(options.out / "loss.png"), dumps)
    return scores


if __name__ == "__main__":
    main()
