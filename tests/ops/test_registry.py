"""No hole: what JAX has a derivative of has a rule here, or a reason why not.

JAX keeps its derivatives in tables, filled when `jax` is imported. Whoever updates JAX and finds
this test failing has a new primitive: give it a rule, or say here why it needs none.
"""

import pkgutil
import subprocess
import sys
from functools import cache
from importlib import import_module

from backpass import ir, passes
from backpass.compiler.importer import FOREIGN
from backpass.compiler.parameters import OPENED
from backpass.ir.op import no_gradient
from backpass.ir.ops import OPS

# Asked of a fresh interpreter: what else was imported here may have brought primitives of its own.
# Half of the rules are in tables without a public name.
ASK = """
import jax, jax.nn, jax.numpy, jax.random, jax.scipy.linalg, jax.scipy.special
from jax.interpreters import ad as public
try:
    from jax._src.interpreters import ad as private
except ImportError:
    private = public
for table in "primitive_jvps primitive_transposes fancy_transposes primitive_linearizations".split():
    held = getattr(private, table, getattr(public, table, ()))
    print(table, *sorted({primitive.name for primitive in held}))
"""

SILENT = "has no outputs"
RAISES = "JAX's own rule raises: a derivative is for the user to give"
STATE = "reads or writes a mutable reference; a graph has values only"
UNREDUCED = "moves between reduced and unreduced types of explicit sharding: by the fallback"
NEVER = "is made by JAX's own transformations, never by a program that is traced"
NO_ARRAY = "works on types that are no arrays"

REASONS: dict[str, str] = {
    **dict.fromkeys("check dce_sink debug_callback debug_print inspect_sharding".split(), SILENT),
    **dict.fromkeys("composite ffi_call io_callback pure_callback".split(), RAISES),
    **dict.fromkeys(
        "get swap addupdate new_ref empty_ref free_ref freeze run_state".split(), STATE
    ),
    **dict.fromkeys("accum_grad_in_ref custom_lin call program_order".split(), NEVER),
    "call_hi_primitive_linearized": NEVER,
    **dict.fromkeys("box_get box_set new_box new_log log_extend log_read".split(), NO_ARRAY),
    **dict.fromkeys(
        "all_gather_reduced ragged_all_to_all pbroadcast_dynamic preduced unreduced_psum "
        "unreduced_reduce_scatter reduced_vary_cast_p vary_unreduced_cast_p reduced_vary_cast "
        "vary_unreduced_cast".split(),
        UNREDUCED,
    ),
}

# Differentiated by JAX's rule for the one primitive, as `Lowered.fallbacks` tells.
FALLBACK = frozenset("relayout to_edtype from_edtype tie with_memory_space_constraint".split())


@cache
def registered() -> dict[str, frozenset[str]]:
    """Names of the primitives in each of JAX's tables of derivatives."""
    asked = [sys.executable, "-P", "-c", ASK]
    lines = subprocess.run(asked, capture_output=True, text=True, check=True).stdout.splitlines()
    return {table: frozenset(names) for table, *names in map(str.split, lines)}


def differentiable() -> frozenset[str]:
    return frozenset().union(*registered().values())


def ruled(name: str) -> bool:
    """True when we differentiate the op: a rule, a region rule, or a call that is opened."""
    op = OPS.get(name)
    return name in OPENED or name in FOREIGN or bool(op and (op.vjp or op.linearise))


def test_jax_has_the_tables() -> None:
    assert {"exp", "add", "scan", "custom_jvp_call", "mul", "jit"} <= differentiable()
    assert len(differentiable()) > 150


def test_whatever_has_a_derivative_has_a_rule_or_a_reason() -> None:
    known = {*REASONS, *FALLBACK}
    holes = sorted(name for name in differentiable() if not ruled(name) and name not in known)
    assert holes == [], "give them rules in ir/ops, or reasons here"


def test_no_reason_is_given_for_what_has_a_rule() -> None:
    assert [name for name in (*REASONS, *FALLBACK) if ruled(name)] == []
    assert FALLBACK.isdisjoint(REASONS)
    assert len(FALLBACK) <= 10


def test_no_derivative_is_said_to_be_zero_where_jax_has_a_transpose() -> None:
    flat = {name for name, op in OPS.items() if op.vjp is no_gradient}
    assert flat & registered()["primitive_transposes"] == set()


def test_tables_of_ops_name_ops_that_there_are() -> None:
    """Collections of names in `ir` and `passes`, of which at least half are ops."""
    strange = {}
    for package in (ir, passes):
        for found in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            for name, value in vars(import_module(found.name)).items():
                if isinstance(value, (frozenset, dict)) and all(isinstance(x, str) for x in value):
                    others = set(value) - OPS.keys()
                    if len(others) <= len(value) / 2 and others:
                        strange[found.name, name] = sorted(others)
    assert not strange
