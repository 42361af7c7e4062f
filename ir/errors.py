"""Errors that users meet: where, what was expected, what was found, what to do."""

from __future__ import annotations

from pathlib import Path

import jax.errors


class BackpassError(Exception):
    """Base of every error that backpass raises on purpose."""


class GraphError(BackpassError):
    """A graph breaks the language's own rules; raised by the verifier, always our bug."""


class ParseError(BackpassError, ValueError):
    """Text is not the IR's canonical form; the message carries line, column and a caret."""


class ShapeError(BackpassError, TypeError):
    """Operand shapes or dtypes do not fit an op."""


class TraceError(BackpassError, TypeError):
    """A Python function cannot be staged: what it does depends on array values or leaks them."""


class ConcretizationError(TraceError, jax.errors.ConcretizationTypeError):
    """Python control flow asked for the value of a traced array."""

    def __init__(self, message: str) -> None:
        """Keep `message` as it is; JAX's own class would wrap a tracer."""
        Exception.__init__(self, message)


class BoolError(ConcretizationError, jax.errors.TracerBoolConversionError):
    """Python asked a traced array whether it is true."""


class IntegerError(ConcretizationError, jax.errors.TracerIntegerConversionError):
    """Python asked a traced array for an index."""


class ArrayError(ConcretizationError, jax.errors.TracerArrayConversionError):
    """NumPy asked for the elements of a traced array."""


class MaskError(ConcretizationError, jax.errors.NonConcreteBooleanIndexError):
    """Indexing asked a traced mask how many elements it picks."""


class LeakError(TraceError, jax.errors.UnexpectedTracerError):
    """A tracer outlived the trace that made it, through a side effect."""

    def __init__(self, message: str) -> None:
        """Keep `message` as it is."""
        Exception.__init__(self, message)


class ArgumentError(BackpassError, TypeError, ValueError):
    """An argument or a result is not an array, or an option does not fit the function."""


class BatchError(BackpassError, ValueError):
    """The samples of a batch depend on each other, so that it can't be run in parts."""


class ShardingError(ShapeError, ArgumentError):
    """A dimension is not a multiple of the mesh axes that are to divide it."""


class DumpError(BackpassError, OSError):
    """A dump cannot be written where it should go."""


class CacheError(BackpassError, OSError):
    """A folder cannot be a cache: it cannot be made, or others may write to it."""


class SaveError(BackpassError, OSError):
    """A training state cannot be saved; earlier saves, and the state in memory, are untouched."""


class RestoreError(BackpassError, ValueError):
    """A saved state is damaged, or of another structure, shape or dtype than expected."""


class ExportError(BackpassError, ValueError):
    """A program cannot be exported, or a file holds none that can be run here."""


class DonationError(BackpassError, RuntimeError):
    """A buffer that was donated to an earlier call is used again."""


class DifferentiationError(BackpassError, TypeError):
    """The gradient that was asked for does not exist: non-scalar loss, integer input, ..."""


class LoopError(DifferentiationError, ValueError):
    """Reverse mode came to a loop whose number of steps is not known; JAX raises ValueError."""


class BudgetError(BackpassError, ValueError):
    """No schedule fits the memory budget; `minimum_bytes` is the smallest budget that one fits."""

    def __init__(self, message: str, minimum_bytes: int) -> None:
        """Tell the smallest feasible budget beside the message."""
        super().__init__(message)
        self.minimum_bytes = minimum_bytes


class OutOfMemoryError(BackpassError, jax.errors.JaxRuntimeError):  # type: ignore[misc]
    """XLA had not the memory that a program needs; JAX raises JaxRuntimeError."""


class MissingRuleError(DifferentiationError, NotImplementedError):
    """An op on the way from inputs to loss has no VJP rule."""


class GradcheckError(BackpassError, AssertionError):
    """A derivative is not what finite differences say."""


class FusionError(BackpassError, AssertionError):
    """A rewrite gives other values than what it took the place of: a fault of ours."""


class NonFiniteError(BackpassError, FloatingPointError):
    """A step gave NaN or infinity; says where the first such value was made.

    `op`, `phase`, `source` (`file:line`) and `scope` are those of the node that made it, or empty
    where it came in by an argument; `steps` are the steps of the loops around it, outermost first;
    `leaves` are the paths of the results that are not finite; `repro` is a file that computes the
    node alone.
    """

    def __init__(
        self,
        message: str,
        *,
        op: str = "",
        phase: str = "",
        source: str = "",
        scope: str = "",
        steps: tuple[int, ...] = (),
        leaves: tuple[str, ...] = (),
        repro: Path | None = None,
    ) -> None:
        """Tell the parts beside the message."""
        super().__init__(message)
        self.op, self.phase, self.source, self.scope = op, phase, source, scope
        self.steps, self.leaves, self.repro = steps, leaves, repro


class AutogradError(BackpassError, RuntimeError):
    """The graph that a dynamic program recorded does not allow what was asked for."""


class ZeroGradientWarning(UserWarning):
    """A gradient is zero everywhere, as an op such as `round` or `>` cuts the only ways to it."""


class RetraceWarning(UserWarning):
    """A function is traced and compiled again and again."""


class ConstantWarning(UserWarning):
    """Large arrays that a function closes over become a part of its program."""


class MemoryWarning(UserWarning):
    """A program is predicted to need more memory than its device has free."""


class TrainingWarning(UserWarning):
    """A training loop of the dynamic mode does what is most often a mistake."""


class CacheWarning(UserWarning):
    """An entry of a cache was dropped, or none can be written; what was wanted is made again."""
