"""ir <- passes, ir <- runtime, compiler sees these, dynamic these four, bench and cli all; and the gradient is ours, not JAX's."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LAYERS = ("bench", "cli", "compiler", "dynamic", "ir", "passes", "runtime")
MODULES = sorted(path for layer in LAYERS for path in (ROOT / layer).rglob("*.py"))

MAY_IMPORT = {
    "bench": {"bench", "compiler", "dynamic", "ir", "passes", "runtime"},
    "cli": {"bench", "cli", "compiler", "dynamic", "ir", "passes", "runtime"},
    "compiler": {"compiler", "ir", "passes", "runtime"},
    "dynamic": {"compiler", "dynamic", "ir", "passes", "runtime"},
    "ir": {"ir"},
    "passes": {"ir", "passes"},
    "runtime": {"ir", "runtime"},
}

DIFFERENTIATION = {
    "jax.ad_checkpoint.checkpoint",
    "jax.ad_checkpoint.remat",
    "jax.checkpoint",
    "jax.grad",
    "jax.hessian",
    "jax.jacfwd",
    "jax.jacobian",
    "jax.jacrev",
    "jax.jvp",
    "jax.linearize",
    "jax.remat",
    "jax.value_and_grad",
    "jax.vjp",
}

# Where a name that is forbidden elsewhere may stand, and why.
ALLOWED = {
    # What ours is compared with.
    "bench/arms.py": {"jax.checkpoint", "jax.value_and_grad"},
    "bench/suites/compile.py": {"jax.value_and_grad"},
    "bench/suites/contrast.py": {"jax.value_and_grad"},
    "bench/suites/dispatch.py": {"jax.value_and_grad"},
    # A single primitive without a rule of ours is differentiated by JAX, visibly.
    "compiler/fallback.py": {"jax.vjp"},
    # Binds the mark `remat2`, which a rule of ours differentiates.
    "compiler/surrogates.py": {"jax.checkpoint"},
    # The one file that knows the differences between JAX versions.
    "ir/jax_compat.py": {"jax._src"},
}


def names_used(source: str, path: str) -> Iterator[tuple[int, str]]:
    """Every imported or dotted name in a module, free of aliases, with its line.

    What is imported relatively begins with a dot: in `passes/cse.py`, `from ..ir import Graph` is
    `.ir.Graph`.
    """
    tree = ast.parse(source)
    package = ["", *Path(path).parent.parts]
    aliases = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
                bound = alias.asname or alias.name.partition(".")[0]
                aliases[bound] = alias.name if alias.asname else bound
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) + 1 - node.level] if node.level else []
            module = ".".join([*base, *filter(None, [node.module])])
            for alias in node.names:
                aliases[alias.asname or alias.name] = f"{module}.{alias.name}"
                yield node.lineno, f"{module}.{alias.name}"
    for node in ast.walk(tree):
        attributes, root = [], node
        while isinstance(root, ast.Attribute):
            attributes.append(root.attr)
            root = root.value
        if attributes and isinstance(root, ast.Name):
            yield node.lineno, ".".join([aliases.get(root.id, root.id), *reversed(attributes)])


def faults(source: str, path: str) -> list[str]:
    """What a module does that its place does not allow, as `path:line: name`."""
    layer, allowed = Path(path).parts[0], ALLOWED.get(path, set())
    found = []
    for line, name in names_used(source, path):
        parts = name.split(".")
        absolute = parts[0] == "backpass"
        crosses = parts[0] == "" and parts[1] not in MAY_IMPORT[layer]
        private = name.startswith("jax._src") and "jax._src" not in allowed
        if absolute or crosses or private or name in DIFFERENTIATION - allowed:
            found.append(f"{path}:{line}: {name}")
    return sorted(set(found))


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_module_keeps_to_its_layer(path):
    assert faults(path.read_text(), path.relative_to(ROOT).as_posix()) == []


def test_every_layer_is_read():
    assert {path.relative_to(ROOT).parts[0] for path in MODULES} == set(LAYERS)


def test_every_exception_is_needed():
    for path, names in ALLOWED.items():
        if (ROOT / path).exists():
            used = [name for _, name in names_used((ROOT / path).read_text(), path)]
            assert all(any(name.startswith(allowed) for name in used) for allowed in names), path


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("ir/printer.py", "from ..passes import cse"),
        ("ir/printer.py", "from .. import runtime"),
        ("ir/ops/linear.py", "from ...compiler.trace import trace"),
        ("compiler/trace.py", "import backpass"),
        ("compiler/trace.py", "from backpass.ir import Graph"),
        ("passes/cse.py", "from ..runtime.lower import lower"),
        ("passes/autodiff/vjp.py", "def f():\n    from ...compiler import grad"),
        ("runtime/lower.py", "import backpass.passes.cse as p"),
        ("runtime/lower.py", "from backpass import compile"),
        ("compiler/trace.py", "from jax._src import core"),
        ("compiler/trace.py", "import jax\njax._src.core.Trace"),
        ("compiler/trace.py", "import jax\ng = jax.grad(f)"),
        ("compiler/trace.py", "import jax as j\ng = j.value_and_grad"),
        ("compiler/trace.py", "from jax import vjp as pullback"),
        ("compiler/trace.py", "from jax import ad_checkpoint as a\na.checkpoint(f)"),
        ("compiler/gradients.py", "import jax\njax.vjp(f, x)"),
        ("compiler/program_call.py", "import jax\njax.jvp(f, x, t)"),
    ],
)
def test_checker_finds(path, source):
    assert len(faults(source, path)) >= 1


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("ir/ops/linear.py", "from ..types import ArrayType\nfrom . import shapes"),
        ("passes/autodiff/vjp.py", "from ...ir import Graph\nfrom ..cse import cse"),
        ("runtime/lower.py", "from ..ir.graph import Graph\nfrom .executable import run"),
        ("compiler/grad.py", "from ..passes.autodiff import expand\nfrom ..runtime import lower"),
        ("ir/jax_compat.py", "from jax._src import core"),
        ("compiler/grad.py", "def grad(f): ...\ngrad(f)\nnode.op.vjp(ct)"),
        ("compiler/grad.py", "from jax.ad_checkpoint import checkpoint_name"),
    ],
)
def test_checker_accepts(path, source):
    assert faults(source, path) == []
