"""Rewrites of the forward graph that XLA does not do."""

from .fuse import Fuse
from .report import Fusion, Fusions

__all__ = ["Fuse", "Fusion", "Fusions"]
