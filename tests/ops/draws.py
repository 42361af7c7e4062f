"""Operands for the cases: drawn once, from seeds."""

import numpy as np


def real(*shape: int, low: float = -2.0, high: float = 2.0, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng([seed, 7, *shape])
    return rng.uniform(low, high, shape)


def positive(*shape: int, seed: int = 0) -> np.ndarray:
    return real(*shape, low=0.5, high=3.0, seed=seed)


def complexes(*shape: int, seed: int = 0) -> np.ndarray:
    return real(*shape, seed=seed) + 1j * real(*shape, seed=seed + 1)


def ints(*shape: int, low: int = 0, high: int = 10, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng([seed, 11, *shape])
    return rng.integers(low, high, shape).astype(np.int32)


def bools(*shape: int, seed: int = 0) -> np.ndarray:
    return ints(*shape, high=2, seed=seed).astype(bool)


def distinct(*shape: int, seed: int = 0) -> np.ndarray:
    """No two elements alike, and none close: for extrema and sorts."""
    rng = np.random.default_rng([seed, 13, *shape])
    return rng.permutation(float(np.prod(shape)) + np.arange(np.prod(shape))).reshape(shape) / 7


def tied(*shape: int, seed: int = 0) -> np.ndarray:
    """Many elements alike."""
    return ints(*shape, high=3, seed=seed).astype(float)
