"""Ops with regions: calls, checkpoint, cond, while.

Reverse mode of such an op is a `linearise` rule: it emits the op's outputs, with whatever the
backward pass has to read besides, and returns the pullback. `scan` has a file of its own, and so
have custom rules.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from jax import lax

from .. import jax_compat
from ..errors import LoopError
from ..op import Attrs, Cts, Differentiator, Op, Pullback
from ..types import ArrayType
from . import custom, tangents
from .calls import Run, call_region, inline_region, region_types
from .scan import SCAN

if TYPE_CHECKING:
    from ..builder import Builder
    from ..graph import Graph, Node, Value

# jax.checkpoint: `remat2(x) {prevent_cse, policy} body`


def _linearise_checkpoint(
    b: Builder, node: Node, needs: Sequence[bool], ad: Differentiator
) -> tuple[Sequence[Value], Pullback]:
    """Save the inputs and what the policy names; run the body again when the cotangent comes."""
    (body,) = node.regions
    outputs, env = b.inline(body, node.inputs, node.origin)
    saved = _saved_by_policy(body, node.attrs.get("policy"))

    def pullback(b: Builder, cts: Cts) -> Cts:
        known = [ct for ct in cts if ct is not None]
        kept = [env[value] for value in saved]
        fenced = b.optimization_barrier(*node.inputs, *kept, *known)
        inputs = fenced[: len(node.inputs)]
        known_again = iter(fenced[len(inputs) + len(kept) :])
        substitutes = dict(zip(saved, fenced[len(inputs) :], strict=False))
        _, pull = ad.inline(b, body, inputs, needs, substitutes)
        return pull(b, [None if ct is None else next(known_again) for ct in cts])

    return outputs, pullback


def _saved_by_policy(body: Graph, policy: Any) -> list[Value]:
    """Outputs of the nodes that a `jax.checkpoint_policies` predicate wants kept."""
    if policy is None:
        return []
    return [
        value
        for node in body.nodes
        if not node.regions and jax_compat.policy_saves(policy, node)
        for value in node.outputs
    ]


# `cond(index, x) branches`
#
# With `platforms` the index is that of the platform which the program is compiled for: the names
# of the platforms of each branch, None for the branch of all others.


def _cond(args: Sequence[Any], attrs: Attrs, regions: Sequence[Graph], run: Run) -> list[Any]:
    index, *operands = args
    branches = [lambda *xs, region=region: run(region, *xs) for region in regions]
    if attrs.get("platforms"):
        each = list(zip(attrs["platforms"], branches, strict=True))
        default = next((branch for names, branch in each if names is None), None)
        chosen = {name: branch for names, branch in each for name in names or ()}
        return list(lax.platform_dependent(*operands, default=default, **chosen))
    return list(lax.switch(index, branches, *operands))


def _linearise_cond(
    b: Builder, node: Node, needs: Sequence[bool], ad: Differentiator
) -> tuple[Sequence[Value], Pullback]:
    """Each branch stores its own residuals; the others store zeros in their place."""
    index, *operands = node.inputs
    splits = [ad.split(branch, needs[1:]) for branch in node.regions]
    count = len(node.outputs)
    sizes = [len(split.forward.outputs) - count for split in splits]
    stored_types = [v.type for split in splits for v in split.forward.outputs[count:]]
    forwards = [
        _branch_forward(b, split.forward, count, sum(sizes[:i]), stored_types)
        for i, split in enumerate(splits)
    ]
    found = b.emit("cond", node.inputs, node.attrs, forwards)
    outputs, stored = found[:count], found[count:]

    def pullback(b: Builder, cts: Cts) -> Cts:
        seeds = [
            ct if ct is not None else b.zeros(out)
            for ct, out in zip(cts, outputs, strict=True)
            if out.type.is_inexact
        ]
        shared = (*operands, *stored, *seeds)
        backwards = [
            _branch_backward(b, split, len(operands), len(stored), sum(sizes[:i]), shared)
            for i, split in enumerate(splits)
        ]
        grads = iter(b.emit("cond", (index, *shared), node.attrs, backwards))
        return [next(grads) if needed else None for needed in needs]

    return outputs, pullback


def _branch_forward(
    b: Builder, forward: Graph, count: int, at: int, stored: Sequence[ArrayType]
) -> Graph:
    """A branch's forward graph with room for the residuals of all branches; its own start `at`."""
    inputs, sub = b.fresh(forward.inputs), b.nested()
    outs, _ = sub.inline(forward, inputs)
    room: list[Value | None] = [None] * len(stored)
    room[at : at + len(outs) - count] = outs[count:]
    filled = [sub.empty(t) if v is None else v for v, t in zip(room, stored, strict=True)]
    return sub.graph(forward.name, inputs, (*outs[:count], *filled))


def _branch_backward(
    b: Builder, split: Any, operands: int, stored: int, at: int, shared: Sequence[Value]
) -> Graph:
    """A branch's backward graph, reading its own share of what all branches are given."""
    inputs = b.fresh(shared)
    own = {"input": 0, "stored": operands + at}
    seeds = inputs[operands + stored :]
    chosen = [inputs[own[kind] + i] for kind, i in split.residuals]
    sub = b.nested()
    outs, _ = sub.inline(split.backward, (*chosen, *seeds))
    return sub.graph(split.backward.name, inputs, outs)


# `while(cond_consts, body_consts, carry) cond, body`
#
# Under `jax.vmap` the condition has leading dimensions, one loop for each element: it runs until
# all have stopped, and those that have keep their carry.


def _while(args: Sequence[Any], attrs: Attrs, regions: Sequence[Graph], run: Run) -> list[Any]:
    test, body = regions
    nc, nb = attrs["cond_nconsts"], attrs["body_nconsts"]
    test_consts, consts, init = args[:nc], args[nc : nc + nb], args[nc + nb :]

    dims = range(test.outputs[0].ndim)

    def live(carry: Any) -> Any:
        return run(test, *test_consts, *carry)[0]

    def step(carry: Any) -> Any:
        new = run(body, *consts, *carry)
        if not dims:
            return new
        going, pairs = live(carry), zip(new, carry, strict=True)
        return [lax.select(lax.broadcast_in_dim(going, x.shape, dims), x, y) for x, y in pairs]

    def any_live(carry: Any) -> Any:
        return live(carry).any() if dims else live(carry)

    return list(lax.while_loop(any_live, step, list(init)))


def _while_types(
    inputs: Sequence[Value], attrs: Attrs, regions: Sequence[Graph]
) -> tuple[ArrayType, ...]:
    return tuple(value.type for value in regions[1].outputs)


def _linearise_while(
    b: Builder, node: Node, needs: Sequence[bool], ad: Differentiator
) -> tuple[Sequence[Value], Pullback]:
    """The number of steps is unknown, so there is no room to save what each step needs.

    Nothing is needed where the cotangents belong to carries that the inputs do not reach in a
    differentiable way.
    """
    outputs = b.emit("while", node.inputs, node.attrs, node.regions)
    nc, nb = node.attrs["cond_nconsts"], node.attrs["body_nconsts"]
    reached = list(needs[nc:])
    tangents.grown(node.regions[1], reached, slice(nb, None), ad)

    def pullback(b: Builder, cts: Cts) -> Cts:
        if not any(ct is not None and on for ct, on in zip(cts, reached[nb:], strict=True)):
            return [None] * len(node.inputs)
        raise LoopError(
            "reverse mode needs a loop with a fixed number of steps, got `while`: Reverse-mode "
            "differentiation does not work for lax.while_loop"
            f"\n  at {node.place}"
            "\n  use jax.lax.scan or a fori_loop with static bounds; for a loop that may stop "
            "early, scan to the largest count and select the old carry once it is done"
        )

    return outputs, pullback


OPS: tuple[Op, ...] = (
    SCAN,
    Op("jit", region_types, call_region, linearise=inline_region, jvp=tangents.call),
    Op("eval_jaxpr", region_types, call_region, linearise=inline_region, jvp=tangents.call),
    Op("closed_call", region_types, call_region, linearise=inline_region, jvp=tangents.call),
    Op(
        "remat2",
        region_types,
        call_region,
        linearise=_linearise_checkpoint,
        jvp=tangents.checkpoint,
    ),
    *custom.OPS,
    Op("cond", region_types, _cond, linearise=_linearise_cond, jvp=tangents.cond),
    Op("while", _while_types, _while, linearise=_linearise_while, jvp=tangents.while_loop),
)
