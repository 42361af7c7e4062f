"""Expand `gradients` nodes into one joint graph of forward, backward and update nodes."""

from .expand import Autodiff
from .reverse import Reverse

__all__ = ["Autodiff", "Reverse"]
