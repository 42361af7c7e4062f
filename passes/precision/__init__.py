"""Mixed precision: products in a narrow dtype, everything that sums in float32."""

from .accumulate import Accumulate
from .autocast import Autocast

__all__ = ["Accumulate", "Autocast"]
