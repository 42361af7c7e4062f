"""Mixed precision: products in a narrow dtype, everything that sums in float32."""

from .accumulate import Accumulate
from .autocast import Autocast
from .place import with_precision

__all__ = ["Accumulate", "Autocast", "with_precision"]
