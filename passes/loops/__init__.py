"""Work that a scan need not do step by step, done in one go before or after it."""

from .hoist import Hoist

__all__ = ["Hoist"]
