"""The same code on two sides: ours and PyTorch's, behind the few names that differ."""

import importlib.util

import jax.numpy as jnp
import numpy as np

from backpass import dynamic as dyn

HAS_TORCH = importlib.util.find_spec("torch") is not None


class Ours:
    """backpass.dynamic."""

    nn = dyn.nn
    F = dyn.nn.functional
    optim = dyn.optim
    autograd = dyn.autograd
    Function = dyn.autograd.Function
    once_differentiable = staticmethod(dyn.autograd.once_differentiable)
    saved_tensors_hooks = dyn.autograd.saved_tensors_hooks
    detect_anomaly = dyn.autograd.detect_anomaly
    no_grad = staticmethod(dyn.no_grad)
    enable_grad = staticmethod(dyn.enable_grad)
    inference_mode = staticmethod(dyn.inference_mode)
    set_grad_enabled = dyn.set_grad_enabled
    is_grad_enabled = staticmethod(dyn.is_grad_enabled)
    checkpoint = staticmethod(dyn.checkpoint)
    manual_seed = staticmethod(dyn.manual_seed)
    rand = staticmethod(dyn.rand)
    float64 = np.float64
    float16 = np.float16
    int32 = np.int32

    @staticmethod
    def tensor(data, requires_grad=False, dtype=None):
        return dyn.tensor(data, requires_grad=requires_grad, dtype=dtype)

    @staticmethod
    def scaler(**options):
        return dyn.amp.GradScaler(**options)

    def __getattr__(self, name):
        return getattr(dyn.numpy, name)


class Theirs:
    """PyTorch on the CPU, its names for NumPy's functions."""

    NAMES = {"arctan": "atan", "arcsin": "asin", "concatenate": "cat", "power": "pow"}

    def __init__(self):
        import torch
        from torch.autograd import Function
        from torch.autograd.function import once_differentiable
        from torch.utils.checkpoint import checkpoint

        self.torch = torch
        self.nn, self.F, self.optim = torch.nn, torch.nn.functional, torch.optim
        self.autograd, self.Function = torch.autograd, Function
        self.once_differentiable = once_differentiable
        self.saved_tensors_hooks = torch.autograd.graph.saved_tensors_hooks
        self.detect_anomaly = torch.autograd.detect_anomaly
        self._checkpoint = checkpoint

    def tensor(self, data, requires_grad=False, dtype=None):
        array = np.asarray(data)
        if dtype is None and array.dtype == np.float64:
            dtype = self.torch.float32
        return self.torch.tensor(data, requires_grad=requires_grad, dtype=dtype)

    def checkpoint(self, fun, *args, **options):
        return self._checkpoint(fun, *args, use_reentrant=False, **options)

    def scaler(self, **options):
        return self.torch.amp.GradScaler("cpu", **options)

    def __getattr__(self, name):
        return getattr(self.torch, self.NAMES.get(name, name))


KINDS = (TypeError, ValueError, IndexError, NotImplementedError, RuntimeError)


def outcome(case, side):
    """What a case gives on a side: its values, or the kind of its error."""
    try:
        return plain(case(side))
    except AssertionError:
        raise
    except Exception as error:
        return next((kind.__name__ for kind in KINDS if isinstance(error, kind)), repr(error))


def plain(x):
    """Tensors as arrays, in the trees that they stand in."""
    if isinstance(x, list | tuple):
        return [plain(each) for each in x]
    if isinstance(x, dict):
        return {key: plain(each) for key, each in x.items()}
    if x is None or isinstance(x, str | bool | int | float):
        return x
    if hasattr(x, "detach"):
        return np.asarray(x.detach().numpy())
    return np.asarray(x) if isinstance(x, jnp.ndarray | np.ndarray) else x


def same(a, b, rtol=2e-5, atol=1e-6):
    """Assert that two outcomes are the same up to rounding."""
    if isinstance(a, list):
        assert isinstance(b, list) and len(a) == len(b), (a, b)
        for x, y in zip(a, b):
            same(x, y, rtol, atol)
    elif isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            same(a[key], b[key], rtol, atol)
    elif isinstance(a, np.ndarray):
        assert isinstance(b, np.ndarray) and a.shape == b.shape, (a, b)
        np.testing.assert_allclose(a, b, rtol=rtol, atol=atol)
    elif isinstance(a, float):
        np.testing.assert_allclose(a, b, rtol=rtol, atol=atol)
    else:
        assert a == b, (a, b)
