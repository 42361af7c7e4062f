"""Statistics of gradients, parameters and updates, as further outputs of a step."""

from .measure import Measured, Row, measured

__all__ = ["Measured", "Row", "measured"]
