"""What people write between the layers: functions of `jax.numpy`, `jax.nn`, `jax.scipy`, `jax.lax`.

Each row is a name, a function and the shapes it is called with; shapes are filled with numbers in
(0.2, 0.9) where the name stands in `POSITIVE`, with normal ones elsewhere.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import jax.scipy as jsp
import numpy as np
from jax import lax, nn

Row = tuple[Callable[..., Any], tuple[tuple[int, ...], ...]]

INDEX = np.array([2, 0, 1, 2])
MASK = np.array([[True, False, True, True], [False, True, True, False], [True, True, True, False]])
TRIU = np.triu_indices(4)


def spd(x: Any) -> Any:
    """A symmetric positive definite matrix made of any."""
    return x @ x.mT + 3.0 * jnp.eye(x.shape[-1])


ACTIVATIONS = {
    f"nn.{name}": (getattr(nn, name), ((3, 4),))
    for name in (
        "relu relu6 sigmoid softplus sparse_plus sparse_sigmoid soft_sign silu swish log_sigmoid "
        "leaky_relu hard_sigmoid hard_silu hard_swish hard_tanh elu celu selu gelu glu squareplus "
        "mish identity softmax log_softmax logsumexp standardize tanh"
    ).split()
}

ELEMENTWISE = {
    f"jnp.{name}": (getattr(jnp, name), ((3, 4),))
    for name in (
        "sin cos tan arcsin arccos arctan sinh cosh tanh arcsinh arctanh exp exp2 expm1 log log2 "
        "log10 log1p sqrt cbrt square reciprocal negative positive abs sinc deg2rad i0 real conj "
        "nan_to_num"
    ).split()
}

PAIRS = {
    f"jnp.{name}": (getattr(jnp, name), ((3, 4), (4,)))
    for name in (
        "add subtract multiply divide power float_power maximum minimum fmax fmin "
        "arctan2 hypot logaddexp logaddexp2 mod remainder fmod outer kron"
    ).split()
}

REDUCTIONS = {
    f"jnp.{name}{'' if axis is None else f' axis={axis}'}": (
        lambda x, f=getattr(jnp, name), axis=axis: f(x, axis=axis),
        ((3, 4),),
    )
    for name in (
        "sum mean prod max min std var ptp median nansum nanmean nanprod nanmax nanmin nanstd "
        "nanvar nanmedian cumsum cumprod sort average"
    ).split()
    for axis in (None, -1)
}

SPECIAL = {
    f"special.{name}": (getattr(jsp.special, name), ((3, 4),))
    for name in (
        "erf erfc erfinv expit logit gammaln digamma loggamma gamma i0 i0e i1 i1e ndtr ndtri "
        "log_ndtr entr sinc log1p softmax log_softmax logsumexp factorial exprel expi".split()
    )
    if hasattr(jsp.special, name)
} | {
    f"special.{name}": (getattr(jsp.special, name), ((3, 4), (3, 4)))
    for name in "xlogy xlog1py rel_entr kl_div beta betaln gammainc gammaincc".split()
}

SHAPES: dict[str, Row] = {
    "reshape": (lambda x: x.reshape(2, -1), ((3, 4),)),
    "ravel": (lambda x: x.ravel(), ((3, 4),)),
    "transpose": (lambda x: x.transpose(2, 0, 1), ((2, 3, 4),)),
    "swapaxes": (lambda x: jnp.swapaxes(x, 0, 2), ((2, 3, 4),)),
    "moveaxis": (lambda x: jnp.moveaxis(x, 0, -1), ((2, 3, 4),)),
    "squeeze and expand": (lambda x: jnp.expand_dims(x.squeeze(1), (0, 2)), ((3, 1, 4),)),
    "broadcast_to": (lambda x: jnp.broadcast_to(x, (5, 3, 4)), ((3, 1),)),
    "concatenate": (lambda x, y: jnp.concatenate([x, y, x], 1), ((3, 4), (3, 2))),
    "stack": (lambda x, y: jnp.stack([x, y], 1), ((3, 4), (3, 4))),
    "hstack vstack": (lambda x: jnp.hstack([x, x]).sum() + jnp.vstack([x, 2 * x]), ((3, 4),)),
    "split": (lambda x: jnp.split(x, [1, 3], axis=1), ((3, 4),)),
    "array_split": (lambda x: jnp.array_split(x, 3), ((7, 2),)),
    "unstack": (lambda x: jnp.unstack(x, axis=1)[2:], ((3, 4),)),
    "tile": (lambda x: jnp.tile(x, (2, 3)), ((3, 4),)),
    "repeat": (lambda x: jnp.repeat(x, 3, axis=1), ((3, 4),)),
    "repeat counts": (
        lambda x: jnp.repeat(x, np.array([1, 0, 2]), axis=0, total_repeat_length=3),
        ((3, 4),),
    ),
    "roll": (lambda x: jnp.roll(x, (1, -2), (0, 1)), ((3, 4),)),
    "flip": (lambda x: jnp.flip(x, 1), ((3, 4),)),
    "rot90": (lambda x: jnp.rot90(x), ((3, 4),)),
    "tril": (lambda x: jnp.tril(x, -1), ((4, 4),)),
    "triu": (lambda x: jnp.triu(x, 1), ((4, 4),)),
    "triu_indices": (lambda x: jnp.zeros((4, 4)).at[TRIU].set(x), ((10,),)),
    "diag": (lambda x: jnp.diag(x) + jnp.diag(jnp.diag(jnp.ones((4, 4)) * x)), ((4,),)),
    "diagonal": (lambda x: jnp.diagonal(x, 1, 0, 2), ((3, 2, 4),)),
    "fill_diagonal": (lambda x, y: jnp.fill_diagonal(x, y, inplace=False), ((4, 4), (4,))),
    "trace": (lambda x: jnp.trace(x), ((3, 4),)),
    "block": (lambda x: jnp.block([[x, 2 * x], [x * x, x]]), ((2, 2),)),
    "meshgrid": (lambda x, y: jnp.meshgrid(x, y), ((3,), (4,))),
    "vander": (lambda x: jnp.vander(x, 4), ((3,),)),
    "delete insert": (lambda x: jnp.insert(jnp.delete(x, 1, 0), 0, 3.0, 1), ((3, 4),)),
    "atleast_3d": (lambda x: jnp.atleast_3d(x), ((3, 4),)),
    "resize": (lambda x: jnp.resize(x, (5, 4)), ((3, 4),)),
    "view as complex": (lambda x: lax.complex(x[0], x[1]) ** 2, ((2, 4),)),
    **{
        f"pad {mode}": (lambda x, mode=mode: jnp.pad(x, ((1, 2), (0, 1)), mode=mode), ((3, 4),))
        for mode in "constant edge reflect symmetric wrap linear_ramp maximum minimum mean".split()
    },
}

INDEXING: dict[str, Row] = {
    "getitem int": (lambda x: x[1], ((3, 4),)),
    "getitem slice": (lambda x: x[::-1, 1:4:2], ((3, 4),)),
    "getitem array": (lambda x: x[INDEX], ((3, 4),)),
    "getitem 2d": (lambda x: x[INDEX[:3], INDEX[1:]], ((3, 4),)),
    "getitem newaxis": (lambda x: x[:, None, ..., 0], ((3, 4),)),
    "getitem mask": (lambda x: x[MASK], ((3, 4),)),
    "getitem traced": (lambda x: x[jnp.argmax(x[:, 0])], ((3, 4),)),
    "take": (lambda x: jnp.take(x, INDEX, axis=0), ((3, 4),)),
    "take clip": (lambda x: jnp.take(x, INDEX * 5, axis=0, mode="clip"), ((3, 4),)),
    "take fill": (lambda x: jnp.take(x, INDEX * 5, axis=0, mode="fill", fill_value=0), ((3, 4),)),
    "take_along_axis": (
        lambda x: jnp.take_along_axis(x, jnp.argsort(x, axis=1)[:, :2], axis=1),
        ((3, 4),),
    ),
    "at set": (lambda x, y: x.at[1].set(y), ((3, 4), (4,))),
    "at set repeated": (lambda x, y: x.at[INDEX].set(y), ((3, 4), (4, 4))),
    "at add repeated": (lambda x, y: x.at[INDEX].add(y), ((3, 4), (4, 4))),
    "at subtract": (lambda x, y: x.at[INDEX].subtract(y), ((3, 4), (4, 4))),
    "at mul": (lambda x, y: x.at[INDEX[1:]].mul(y, unique_indices=True), ((3, 4), (3, 4))),
    "at divide": (lambda x: x.at[1].divide(2.0), ((3, 4),)),
    "at power": (lambda x: x.at[1].power(2.0), ((3, 4),)),
    "at max": (lambda x, y: x.at[INDEX].max(y), ((3, 4), (4, 4))),
    "at min": (lambda x, y: x.at[INDEX].min(y), ((3, 4), (4, 4))),
    "at get drop": (lambda x: x.at[INDEX * 5].get(mode="drop", fill_value=0.0), ((3, 4),)),
    "dynamic_slice": (lambda x: lax.dynamic_slice(x, (1, 2), (2, 2)), ((3, 4),)),
    "dynamic_update_slice": (lambda x, y: lax.dynamic_update_slice(x, y, (1, 1)), ((3, 4), (2, 2))),
    "dynamic_index_in_dim": (
        lambda x: lax.dynamic_index_in_dim(x, jnp.argmax(x[0]) % 3, 0, keepdims=False),
        ((3, 4),),
    ),
    "segment_sum": (lambda x: jax.ops.segment_sum(x, INDEX, 3), ((4, 3),)),
    "segment_max": (lambda x: jax.ops.segment_max(x, INDEX, 3), ((4, 3),)),
    "segment_min": (lambda x: jax.ops.segment_min(x, INDEX, 3), ((4, 3),)),
    "sort": (lambda x: jnp.sort(x, axis=0), ((5, 3),)),
    "sort pairs": (lambda x, y: lax.sort([x, y], num_keys=1), ((5, 3), (5, 3))),
    "sort descending": (lambda x: jnp.sort(x, descending=True), ((5, 3),)),
    "argsort gather": (lambda x: x[jnp.argsort(-x)], ((5,),)),
    "top_k": (lambda x: lax.top_k(x, 2)[0], ((3, 5),)),
    "partition": (lambda x: jnp.partition(x, 2), ((3, 5),)),
    "searchsorted": (lambda x, y: y[jnp.searchsorted(jnp.sort(x), 0.3) % 4], ((5,), (4,))),
    "digitize": (lambda x, y: y[jnp.digitize(x, jnp.array([-1.0, 0.0, 1.0]))], ((5,), (4,))),
    "select": (lambda x: jnp.select([x > 1, x > 0], [x * x, x], -x), ((3, 4),)),
    "where": (lambda x, y: jnp.where(x > y, x, y * 2), ((3, 4), (4,))),
    "where safe": (lambda x: jnp.where(x > 0, jnp.sqrt(jnp.where(x > 0, x, 1.0)), 0), ((3, 4),)),
    "piecewise": (lambda x: jnp.piecewise(x, [x < 0, x >= 0], [lambda v: -v, jnp.sin]), ((7,),)),
    "clip": (lambda x: jnp.clip(x, -0.5, 0.5), ((3, 4),)),
    "clip by arrays": (lambda x, y: jnp.clip(x, y - 0.3, y + 0.3), ((3, 4), (4,))),
    "bincount weights": (lambda x: jnp.bincount(INDEX, x, length=3), ((4,),)),
    "histogram weights": (lambda x: jnp.histogram(INDEX, 3, weights=x)[0], ((4,),)),
    "apply_along_axis": (lambda x: jnp.apply_along_axis(jnp.cumsum, 1, x), ((3, 4),)),
    "one_hot matmul": (lambda x: nn.one_hot(INDEX, 3, dtype=x.dtype) @ x, ((3, 4),)),
}

PRODUCTS: dict[str, Row] = {
    "matmul": (lambda x, y: x @ y, ((3, 4), (4, 2))),
    "matvec": (lambda x, y: x @ y, ((3, 4), (4,))),
    "vecmat": (lambda x, y: x @ y, ((4,), (4, 3))),
    "batched": (lambda x, y: x @ y, ((5, 3, 4), (5, 4, 2))),
    "broadcast batch": (lambda x, y: x @ y, ((2, 1, 3, 4), (5, 4, 2))),
    "dense on 3d": (lambda x, y: x @ y, ((2, 3, 4), (4, 5))),
    "dot": (jnp.dot, ((3, 4), (2, 4, 5))),
    "vdot": (jnp.vdot, ((3, 4), (4, 3))),
    "inner": (jnp.inner, ((3, 4), (2, 4))),
    "outer": (jnp.outer, ((3,), (4,))),
    "tensordot": (lambda x, y: jnp.tensordot(x, y, ((2, 0), (1, 2))), ((2, 3, 4), (5, 4, 2))),
    "tensordot 2": (lambda x, y: jnp.tensordot(x, y, 2), ((2, 3, 4), (3, 4, 5))),
    "cross": (jnp.cross, ((5, 3), (5, 3))),
    "vecdot": (jnp.vecdot, ((5, 3), (5, 3))),
    "multi_dot": (lambda x, y: jnp.linalg.multi_dot([x, y, x]), ((3, 4), (4, 3))),
    "matrix_power": (lambda x: jnp.linalg.matrix_power(x, 3), ((3, 3),)),
    "convolve": (lambda x, y: jnp.convolve(x, y, "same"), ((7,), (3,))),
    "correlate": (lambda x, y: jnp.correlate(x, y, "full"), ((7,), (3,))),
    "polyval": (jnp.polyval, ((4,), (5,))),
    "polymul": (jnp.polymul, ((4,), (3,))),
    "interp": (lambda x, y: jnp.interp(x, jnp.linspace(-3, 3, 5), y), ((4,), (5,))),
    "trapezoid": (lambda x: jnp.trapezoid(x, dx=0.1), ((7,),)),
    "gradient": (lambda x: jnp.gradient(x), ((5, 4),)),
    "diff": (lambda x: jnp.diff(x, 2), ((3, 6),)),
    "ediff1d": (lambda x: jnp.ediff1d(x), ((6,),)),
    "cov": (jnp.cov, ((3, 7),)),
    "corrcoef": (jnp.corrcoef, ((3, 7),)),
    "quantile": (lambda x: jnp.quantile(x, jnp.array([0.1, 0.5]), axis=0), ((7, 3),)),
    "percentile": (lambda x: jnp.percentile(x, 30), ((7, 3),)),
    "cumulative_logsumexp": (lambda x: lax.cumlogsumexp(x, axis=1), ((3, 4),)),
    "cummax cummin": (lambda x: lax.cummax(x, 1) - lax.cummin(x, 0, reverse=True), ((3, 4),)),
    "linspace": (lambda x, y: jnp.linspace(x, y, 5), ((3,), (3,))),
    "logspace geomspace": (lambda x: jnp.geomspace(1 + x**2, 9.0, 4), ((3,),)),
    "unwrap": (jnp.unwrap, ((7,),)),
    **{
        f"einsum {spec}": (lambda *xs, spec=spec: jnp.einsum(spec, *xs), shapes)
        for spec, shapes in {
            "ij,jk->ik": ((3, 4), (4, 2)),
            "ij,kj->ki": ((3, 4), (2, 4)),
            "bhqd,bhkd->bhqk": ((2, 2, 3, 4), (2, 2, 5, 4)),
            "bqhd,bkhd->bhqk": ((2, 3, 2, 4), (2, 5, 2, 4)),
            "bhqk,bkhd->bqhd": ((2, 2, 3, 5), (2, 5, 2, 4)),
            "btd,dhk->bthk": ((2, 3, 4), (4, 2, 5)),
            "bthk,hkd->btd": ((2, 3, 2, 5), (2, 5, 4)),
            "ecd,edf->ecf": ((3, 2, 4), (3, 4, 5)),
            "bi,ijk,bj->bk": ((2, 3), (3, 4, 5), (2, 4)),
            "ii->i": ((3, 3),),
            "ij->": ((3, 4),),
            "...i,...i->...": ((2, 3, 4), (3, 4)),
            "ijk,lkj->li": ((2, 3, 4), (5, 4, 3)),
            "abc,cb->a": ((2, 3, 4), (4, 3)),
            "i,j->ij": ((3,), (4,)),
        }.items()
    },
}

LINALG: dict[str, Row] = {
    "norm": (jnp.linalg.norm, ((3, 4),)),
    "norm axis": (lambda x: jnp.linalg.norm(x, axis=-1, keepdims=True), ((3, 4),)),
    "norm 1": (lambda x: jnp.linalg.norm(x, 1, axis=1), ((3, 4),)),
    "norm inf": (lambda x: jnp.linalg.norm(x, jnp.inf, axis=1), ((3, 4),)),
    "norm 3": (lambda x: jnp.linalg.norm(x, 3, axis=1), ((3, 4),)),
    "norm nuclear": (lambda x: jnp.linalg.norm(x, "nuc"), ((3, 4),)),
    "norm spectral": (lambda x: jnp.linalg.norm(x, 2), ((3, 4),)),
    "det": (jnp.linalg.det, ((4, 4),)),
    "det batched": (jnp.linalg.det, ((2, 3, 3),)),
    "slogdet": (lambda x: jnp.linalg.slogdet(x)[1], ((4, 4),)),
    "inv": (jnp.linalg.inv, ((2, 3, 3),)),
    "pinv": (jnp.linalg.pinv, ((4, 3),)),
    "solve": (jnp.linalg.solve, ((3, 3), (3, 2))),
    "solve vector": (jnp.linalg.solve, ((3, 3), (3,))),
    "lstsq": (lambda x, y: jnp.linalg.lstsq(x, y)[0], ((5, 3), (5,))),
    "cholesky": (lambda x: jnp.linalg.cholesky(spd(x)), ((2, 3, 3),)),
    "eigh": (lambda x: jnp.linalg.eigh(spd(x))[0], ((4, 4),)),
    "eigh vectors": (lambda x: jnp.abs(jnp.linalg.eigh(spd(x))[1]), ((3, 3),)),
    "eigvalsh": (lambda x: jnp.linalg.eigvalsh(spd(x)), ((4, 4),)),
    "qr": (lambda x: jnp.linalg.qr(x), ((4, 3),)),
    "svd values": (lambda x: jnp.linalg.svd(x, compute_uv=False), ((4, 3),)),
    "svd": (lambda x: jnp.linalg.svd(x, full_matrices=False)[1] * 2, ((4, 3),)),
    "triangular": (
        lambda x, y: jsp.linalg.solve_triangular(jnp.tril(spd(x)), y, lower=True),
        ((3, 3), (3, 2)),
    ),
    "cho_solve": (
        lambda x, y: jsp.linalg.cho_solve(jsp.linalg.cho_factor(spd(x)), y),
        ((3, 3), (3,)),
    ),
    "scipy solve pos": (lambda x, y: jsp.linalg.solve(spd(x), y, assume_a="pos"), ((3, 3), (3,))),
    "lu": (lambda x: jsp.linalg.lu(x)[1:], ((3, 3),)),
    "expm": (lambda x: jsp.linalg.expm(x), ((3, 3),)),
    "block_diag": (lambda x, y: jsp.linalg.block_diag(x, y), ((2, 2), (3, 3))),
    "toeplitz": (jsp.linalg.toeplitz, ((4,),)),
    "cond number": (lambda x: jnp.linalg.cond(spd(x)), ((3, 3),)),
    "cg": (lambda x, y: jsp.sparse.linalg.cg(spd(x), y)[0], ((3, 3), (3,))),
    "fft": (lambda x: jnp.fft.fft(x), ((3, 8),)),
    "ifft": (lambda x: jnp.fft.ifft(x + 1j), ((3, 8),)),
    "rfft": (lambda x: jnp.abs(jnp.fft.rfft(x)) ** 2, ((3, 8),)),
    "irfft": (lambda x: jnp.fft.irfft(jnp.fft.rfft(x) * 2j, 7), ((3, 7),)),
    "fft2 shift": (lambda x: jnp.fft.fftshift(jnp.fft.fft2(x)), ((4, 6),)),
    "rfftn": (lambda x: jnp.fft.rfftn(x), ((2, 4, 6),)),
}

SCIPY: dict[str, Row] = {
    "norm.logpdf": (jsp.stats.norm.logpdf, ((4,), (4,))),
    "norm.cdf": (jsp.stats.norm.cdf, ((4,),)),
    "norm.logcdf": (jsp.stats.norm.logcdf, ((4,),)),
    "norm.ppf": (jsp.stats.norm.ppf, ((4,),)),
    "multivariate_normal": (
        lambda x, m: jsp.stats.multivariate_normal.logpdf(x, m[0], spd(m)),
        ((5, 3), (3, 3)),
    ),
    "beta.logpdf": (jsp.stats.beta.logpdf, ((4,), (4,), (4,))),
    "gamma.logpdf": (jsp.stats.gamma.logpdf, ((4,), (4,))),
    "t.logpdf": (jsp.stats.t.logpdf, ((4,), (4,))),
    "laplace.logpdf": (jsp.stats.laplace.logpdf, ((4,), (4,))),
    "dirichlet.logpdf": (lambda x, a: jsp.stats.dirichlet.logpdf(nn.softmax(x), a), ((4,), (4,))),
    "poisson.logpmf": (lambda x: jsp.stats.poisson.logpmf(INDEX, x), ((4,),)),
    "bernoulli.logpmf": (lambda x: jsp.stats.bernoulli.logpmf(INDEX % 2, x), ((4,),)),
    "logistic.logpdf": (jsp.stats.logistic.logpdf, ((4,),)),
    "gaussian_kde": (lambda x: jsp.stats.gaussian_kde(x)(jnp.linspace(0, 1, 3)), ((7,),)),
    "polygamma": (lambda x: jsp.special.polygamma(2, x), ((4,),)),
    "multigammaln": (lambda x: jsp.special.multigammaln(x + 3, 2), ((4,),)),
    "betainc": (lambda x: jsp.special.betainc(2.0, 3.0, x), ((4,),)),
    "logsumexp b": (lambda x, y: jsp.special.logsumexp(x, axis=0, b=y), ((4, 3), (4, 3))),
    "map_coordinates": (
        lambda x, y: jsp.ndimage.map_coordinates(x, [y[0] * 2, y[1]], 1),
        ((4, 5), (2, 6)),
    ),
    "signal.convolve2d": (lambda x, y: jsp.signal.convolve2d(x, y, "same"), ((5, 5), (3, 3))),
    "signal.fftconvolve": (lambda x, y: jsp.signal.fftconvolve(x, y), ((7,), (3,))),
    "signal.stft": (lambda x: jsp.signal.stft(x, nperseg=8)[2], ((32,),)),
    "interpolator": (
        lambda x, y: jsp.interpolate.RegularGridInterpolator((jnp.arange(4.0),), y)(x),
        ((3, 1), (4,)),
    ),
    "image.resize linear": (lambda x: jax.image.resize(x, (5, 7), "linear"), ((3, 4),)),
    "image.resize cubic": (lambda x: jax.image.resize(x, (5, 7), "cubic"), ((3, 4),)),
    "image.resize nearest": (lambda x: jax.image.resize(x, (5, 7), "nearest"), ((3, 4),)),
    "scale_and_translate": (
        lambda x, s: jax.image.scale_and_translate(x, (5, 5), (0, 1), s + 1.5, s, "linear"),
        ((4, 4), (2,)),
    ),
}

POSITIVE = frozenset(
    "jnp.log jnp.log2 jnp.log10 jnp.log1p jnp.sqrt jnp.cbrt jnp.arcsin jnp.arccos jnp.arctanh "
    "jnp.power jnp.float_power special.logit special.erfinv special.ndtri special.gamma special.gammaln "
    "special.loggamma special.digamma special.factorial special.entr special.xlogy special.expi "
    "special.xlog1py special.rel_entr special.kl_div special.beta special.betaln "
    "special.gammainc special.gammaincc norm.ppf beta.logpdf gamma.logpdf t.logpdf "
    "dirichlet.logpdf poisson.logpmf bernoulli.logpmf polygamma multigammaln betainc "
    "map_coordinates interpolator scale_and_translate".split()
) | {"logsumexp b", "gaussian_kde"}

SECTIONS: dict[str, dict[str, Row]] = {
    "activations": ACTIVATIONS,
    "elementwise": ELEMENTWISE,
    "pairs": PAIRS,
    "reductions": REDUCTIONS,
    "special": SPECIAL,
    "shapes": SHAPES,
    "indexing": INDEXING,
    "products": PRODUCTS,
    "linear algebra": LINALG,
    "scipy": SCIPY,
}
