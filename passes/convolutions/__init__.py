"""Convolutions in the form that costs least."""

from .convolutions import Convolutions
from .patches import product_of_patches

__all__ = ["Convolutions", "product_of_patches"]
