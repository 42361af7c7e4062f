"""Work that a scan need not do step by step, done in one go before or after it."""

from .defer import Defer
from .hoist import Hoist
from .strip import Strip
from .unroll import Unroll

__all__ = ["Defer", "Hoist", "Strip", "Unroll"]
