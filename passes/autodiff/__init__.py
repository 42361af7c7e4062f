"""Expand `gradients` nodes into one joint graph of forward, backward and update nodes."""

from .expand import Autodiff
from .forward import Forward, linearised
from .reverse import Reverse

__all__ = ["Autodiff", "Forward", "Reverse", "linearised"]
