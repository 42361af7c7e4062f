"""The case table: every op of the tables, several operands and attributes each."""

from backpass.ir.ops import collectives
from ops import cases_elementwise, cases_indexing, cases_linalg, cases_shapes
from ops.cases_elementwise import exists
from ops.harness import Case

CASES: tuple[Case, ...] = (
    *cases_elementwise.CASES,
    *cases_shapes.CASES,
    *cases_indexing.CASES,
    *cases_linalg.CASES,
)

# Ops without a case here, and where they are tested instead.
ELSEWHERE: dict[str, str] = {
    **dict.fromkeys("scan while cond".split(), "control flow: tests/passes/autodiff"),
    **dict.fromkeys("jit closed_call remat2 eval_jaxpr".split(), "calls: tests/passes/autodiff"),
    **dict.fromkeys("custom_jvp_call custom_vjp_call".split(), "custom rules: tests/compiler"),
    **{op.name: "named axes: test_collectives" for op in collectives.OPS},
    "shard_map": "named axes: test_collectives, and tests/compiler/test_sharding",
    "chunked": "regions: tests/passes/test_fuse_losses",
    "reshard": "meshes of explicit axes: tests/compiler/test_sharding",
    "custom_linear_solve": "regions: test_solves",
    "linear_call": "regions: test_calls",
    **dict.fromkeys("reduce reduce_window".split(), "regions: test_reducers"),
    "fallback": "JAX's own derivative of one primitive: tests/compiler/test_fallback",
    "gradients": "a marker: tests/passes/autodiff",
    **dict.fromkeys(("offload", "fetch"), "other memories: tests/passes/test_offload"),
    **{
        name: "a primitive that this version of JAX does not have"
        for name in ("log2", "one_minus_square", "polynomial")
        if not exists(name)
    },
}
