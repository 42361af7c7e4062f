"""`bp.compile`: the decorator."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, overload

from ..ir.errors import ArgumentError
from ..passes import Pass
from ..passes.precision import Autocast
from .budget import Planning, parse_bytes
from .function import CompiledFunction
from .guarded import GuardedFunction
from .memory_plan import MemoryPlan
from .options import Options, checked_debug, checked_health, checked_steps, pipeline_of

Names = str | Iterable[str] | None
Numbers = int | Sequence[int] | None


@overload
def compile(fun: Callable[..., Any], **options: Any) -> CompiledFunction: ...


@overload
def compile(fun: None = None, **options: Any) -> Callable[..., CompiledFunction]: ...


def compile(
    fun: Callable[..., Any] | None = None,
    *,
    memory_budget: int | str | None = None,
    plan: MemoryPlan | None = None,
    passes: str | Sequence[Pass] | None = None,
    precision: str | None = None,
    accumulate_steps: int | str | None = None,
    debug: bool | str | None = None,
    health: bool = False,
    max_traces: int | None = None,
    static_argnums: Numbers = None,
    static_argnames: Names = None,
    donate_argnums: Numbers = None,
    donate_argnames: Names = None,
    keep_unused: bool = False,
    compiler_options: dict[str, Any] | None = None,
    **shardings: Any,
) -> Any:
    """Compile a training function: trace, differentiate by our chain rules, rewrite, hand to XLA.

    Works as a decorator with and without parentheses. The function takes and returns pytrees. It
    is traced again when shapes, dtypes, the tree structure or a static argument change.

    Args:
        fun: a function of arrays, in ordinary `jax.numpy`; gradients by `bp.grad` inside.
        memory_budget: bytes, or a string such as `"600MiB"`, `"6GB"`, that bound arguments +
            outputs + temporaries - donated, as XLA reports them, on each device; `"auto"` is what
            the device has free. What does not fit is made again in the backward pass.
        plan: a plan that `Lowered.plan.save` wrote, to be followed as it is.
        passes: a pipeline such as `"canonicalise,autodiff,cse"` or a sequence of passes, in
            place of the usual one; `"-fuse,-restack"` is the usual one without these.
        precision: `"bfloat16"` or `"float16"`: products take operands of that dtype and add up in
            float32, as do norms, softmax and losses; parameters and their gradients stay float32.
            For float16 see `bp.LossScale`.
        accumulate_steps: run the batch in so many parts, one after the other, and add up their
            gradients: those of the whole batch, for the memory of a part. Which dimensions hold
            the samples is found. `"auto"`: as few as the memory budget asks for, and as are fast.
        debug: verify the graph after every pass; `"strict"` also forbids `Lowered.fallbacks`,
            derivatives that are JAX's own for want of a rule, `"verify-fusions"` compares each
            of `Lowered.fusions` with what it takes the place of, on random inputs, and `"nan"`
            looks at every result: where one is not finite, it says which op made the first NaN or
            infinity, and of what. Donated arguments then stay as they are.
        health: return `(result, bp.Health)`: norms of gradients, parameters and updates, zeros and
            non-finite elements, computed inside the step.
        max_traces: warn when the function has been traced more often than this; by default,
            once, when it is traced at nearly every call.
        static_argnums: positions of arguments that are hashable settings of the program.
        static_argnames: their names.
        donate_argnums: positions of arguments whose buffers the outputs may take over.
        donate_argnames: their names.
        keep_unused: keep arguments that the function does not read.
        compiler_options: XLA's options, by name.
        shardings: `in_shardings` and `out_shardings`, as in `jax.jit`.

    Returns:
        A callable with `.trace`, `.lower` and `.explain`.

    Raises:
        ArgumentError: `fun` is no function, or an option is unknown.
        BatchError: at the first call, with `accumulate_steps`, when samples depend on each other.
        BudgetError: at the first call, when no schedule fits; `.minimum_bytes` would.
        MissingRuleError: at the first call, with `debug="strict"`.
        FusionError: at the first call, with `debug="verify-fusions"`.
        NonFiniteError: at any call, with `debug="nan"`.
    """
    unknown = sorted(shardings.keys() - {"in_shardings", "out_shardings"})
    if unknown:
        raise ArgumentError(f"compile has no option {unknown[0]!r}")
    if precision is not None:
        Autocast(precision)
    budget = None if memory_budget is None else parse_bytes(memory_budget)
    jit: dict[str, Any] = {
        "static_argnums": static_argnums,
        "static_argnames": static_argnames,
        "donate_argnums": donate_argnums,
        "donate_argnames": donate_argnames,
        "keep_unused": keep_unused,
        "compiler_options": compiler_options,
        **shardings,
    }
    options = Options(
        jit,
        None if passes is None else pipeline_of(passes),
        precision,
        checked_steps(accumulate_steps),
        checked_debug(debug),
        checked_health(health),
        max_traces,
        Planning(budget, plan, repr(sorted(jit.items()))),
    )

    def decorate(fun: Callable[..., Any]) -> CompiledFunction:
        if not callable(fun):
            raise ArgumentError(f"compile wants a function, got {type(fun).__name__}")
        made = GuardedFunction if options.debug == "nan" else CompiledFunction
        return made(fun, options)

    return decorate if fun is None else decorate(fun)
