"""Repeated blocks of a program become one scan."""

from .roll import Roll

__all__ = ["Roll"]
