"""Random bits and keys: data without derivatives."""

from ..op import Op

OPS: tuple[Op, ...] = ()
