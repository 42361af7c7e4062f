"""Fourier transforms. All are linear; in JAX's convention their VJPs conjugate nothing."""

from __future__ import annotations

from collections.abc import Sequence
from math import log2, prod
from typing import TYPE_CHECKING

import numpy as np
from jax.lax import FftType

from ..op import Cts, Op, primitive_op

if TYPE_CHECKING:
    from ..builder import Builder
    from ..graph import Node, Value


def _fft(b: Builder, x: Value, kind: FftType, lengths: Sequence[int]) -> Value:
    return b.one("fft", x, fft_type=kind, fft_lengths=tuple(lengths))


def _vjp(b: Builder, node: Node, cts: Cts, needs: Sequence[bool]) -> Cts:
    """The matrices of FFT and IFFT are symmetric; those of the real ones see half a spectrum."""
    (g,), (x,) = cts, node.inputs
    assert g is not None
    kind, lengths = node.attrs["fft_type"], node.attrs["fft_lengths"]
    if kind == FftType.RFFT:
        return [_of_real(b, g, lengths)]
    if kind == FftType.IRFFT:
        return [_to_real(b, g, x, lengths)]
    return [_fft(b, g, kind, lengths)]


def _of_real(b: Builder, g: Value, lengths: Sequence[int]) -> Value:
    """Fill the missing half with zeros, transform, and take the real part."""
    edge = [(0, 0, 0)] * (g.ndim - 1) + [(0, lengths[-1] - g.shape[-1], 0)]
    return b.real(_fft(b, b.pad(g, 0, edge), FftType.FFT, lengths))


def _to_real(b: Builder, g: Value, x: Value, lengths: Sequence[int]) -> Value:
    """conj(RFFT(g)) c / N: c is 2 where an entry stands for its mirror image too, 1 elsewhere."""
    n, half = lengths[-1], x.shape[-1]
    twice = np.full(half, 2.0)
    twice[0] = 1
    if n % 2 == 0:
        twice[-1] = 1
    weights = b.constant((twice / prod(lengths)).astype(g.dtype))
    scale = b.broadcast_in_dim(weights, x.shape, (x.ndim - 1,))
    spectrum = b.conj(_fft(b, g, FftType.RFFT, lengths))
    return b.mul(spectrum, b.convert(scale, x.dtype))


def _flops(node: Node) -> int:
    """5 n log2 n for each transform of n points, the usual count."""
    n = prod(node.attrs["fft_lengths"])
    size = max(node.inputs[0].type.size, node.outputs[0].type.size)
    return round(5 * size * log2(n)) if n > 1 else size


OPS: tuple[Op, ...] = (primitive_op("fft", vjp=_vjp, flops=_flops),)
