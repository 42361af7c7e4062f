"""Where in a program the first NaN or infinity is born."""

from .hints import factors_of, hint_of, mask_of
from .lines import lined
from .locate import FINITE, Birth, births, first_of
from .record import Record, recorded
from .tap import tapped

__all__ = [
    "FINITE",
    "Birth",
    "Record",
    "births",
    "first_of",
    "factors_of",
    "hint_of",
    "lined",
    "mask_of",
    "recorded",
    "tapped",
]
