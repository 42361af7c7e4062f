"""Gradient accumulation: a batch in parts, one after the other."""

from .microbatch import Microbatch
from .place import with_microbatch

__all__ = ["Microbatch", "with_microbatch"]
