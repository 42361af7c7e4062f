"""Linear algebra."""

from ..op import Op

OPS: tuple[Op, ...] = ()
