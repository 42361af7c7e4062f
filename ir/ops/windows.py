"""Windows."""

from ..op import Op

OPS: tuple[Op, ...] = ()
