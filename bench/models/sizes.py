"""How large the models are: `tiny` to see that they run, `small` for a CPU, `large` for a GPU."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import jax

from .images import mlp, resnet, unet, vae, vit
from .model import Model
from .sequences import gpt, lstm, moe

SIZES: Mapping[str, Mapping[str, Callable[..., Model]]] = {
    "tiny": {
        "mlp": partial(mlp, 8, (12, 16, 16, 4)),
        "resnet": partial(resnet, 2, 8, (4, 8)),
        "gpt": partial(gpt, 2, 16, 2, 8, 2, 32),
        "gpt_scan": partial(gpt, 2, 16, 2, 8, 2, 32, scanned=True),
        "lstm": partial(lstm, 2, 6, 8, 16),
        "vit": partial(vit, 2, 8, 4, 1, 8, 2),
        "unet": partial(unet, 2, 8, (4, 8)),
        "moe": partial(moe, 16, 8, 4, 2, 4),
        "vae": partial(vae, 4, 12, 8, 3),
    },
    "small": {
        "mlp": partial(mlp, 256, (784, 1024, 1024, 10)),
        "resnet": partial(resnet, 32, 32, (32, 64, 128)),
        "gpt": partial(gpt, 6, 256, 4, 256, 8, 8192),
        "gpt_scan": partial(gpt, 6, 256, 4, 256, 8, 8192, scanned=True),
        "lstm": partial(lstm, 32, 128, 256, 256),
        "vit": partial(vit, 32, 32, 4, 4, 192, 3),
        "unet": partial(unet, 8, 64, (16, 32, 64)),
        "moe": partial(moe, 1024, 128, 8, 2, 64),
        "vae": partial(vae, 256, 784, 512, 32),
    },
    "large": {
        "mlp": partial(mlp, 8192, (784, 4096, 4096, 10)),
        "resnet": partial(resnet, 256, 64, (64, 128, 256)),
        "gpt": partial(gpt, 12, 768, 12, 512, 16, 32768),
        "gpt_scan": partial(gpt, 12, 768, 12, 512, 16, 32768, scanned=True),
        "lstm": partial(lstm, 64, 256, 1024, 1024),
        "vit": partial(vit, 128, 64, 4, 8, 512, 8),
        "unet": partial(unet, 32, 256, (32, 64, 128, 256)),
        "moe": partial(moe, 4096, 1024, 16, 2, 64),
        "vae": partial(vae, 4096, 784, 2048, 64),
    },
}


def fitting(size: str) -> str:
    """Return `size`, or for `auto` the one that suits the default device."""
    if size != "auto":
        return size
    return "small" if jax.default_backend() == "cpu" else "large"


def models(names: Sequence[str] | None = None, size: str = "small") -> list[Model]:
    """Return the models of these names, or all of them."""
    table = SIZES[size]
    return [table[name]() for name in names or table]
