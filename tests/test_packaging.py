"""What an installation holds, and what `import backpass` costs."""

import json
import os
import shutil
import subprocess
import sys
import tarfile
import tomllib
from importlib import import_module
from pathlib import Path
from zipfile import ZipFile

import backpass

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
LAYERS = ("bench", "cli", "compiler", "dynamic", "ir", "passes", "runtime")


def test_every_package_is_installed():
    folders = {path.parent for layer in LAYERS for path in (ROOT / layer).rglob("*.py")}
    names = {".".join(["backpass", *folder.relative_to(ROOT).parts]) for folder in folders}
    assert set(PROJECT["tool"]["setuptools"]["packages"]) == names | {"backpass"}
    assert [folder for folder in folders if not (folder / "__init__.py").exists()] == []


def test_nothing_else_is_installed():
    """setuptools would take every module beside the root's `__init__.py` into the package."""
    assert [path.name for path in ROOT.glob("*.py")] == ["__init__.py"]


def test_data_files_are_declared():
    files = [path for layer in LAYERS for path in (ROOT / layer).rglob("*") if path.is_file()]
    data = [path for path in files if path.suffix not in {".py", ".pyc"}]
    declared = [
        ROOT.joinpath(*package.split(".")[1:], pattern)
        for package, patterns in PROJECT["tool"]["setuptools"]["package-data"].items()
        for pattern in patterns
    ]
    assert [path for path in data if not any(path.match(str(glob)) for glob in declared)] == []
    assert (ROOT / "py.typed").exists()


def test_console_script_exists():
    module, function = PROJECT["project"]["scripts"]["backpass"].split(":")
    assert callable(getattr(import_module(module), function))


def test_public_names_exist():
    assert len(backpass.__all__) == len(set(backpass.__all__)) > 0
    assert [name for name in backpass.__all__ if not hasattr(backpass, name)] == []


def test_the_checkout_is_what_is_tested():
    assert Path(backpass.__file__).parent == ROOT


def test_import_needs_no_extra():
    code = "import json, sys, backpass; print(json.dumps(list(sys.modules)))"
    run = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, check=True)
    extras = {"equinox", "flax", "matplotlib", "optax", "orbax", "sklearn", "torch", "tqdm"}
    assert extras & set(json.loads(run.stdout)) == set()


def built(kind: str, source: Path, into: Path) -> Path:
    """The path of a `wheel` or an `sdist` of a tree."""
    into.mkdir()
    code = f"from setuptools import build_meta; build_meta.build_{kind}(sys.argv[1])"
    command = [sys.executable, "-P", "-c", f"import sys; {code}", str(into)]
    subprocess.run(command, cwd=source, capture_output=True, check=True)
    (made,) = into.iterdir()
    return made


def test_a_wheel_of_the_sdist_is_the_package(tmp_path):
    """As an installer makes it: what the tree has, no more, and it runs by itself."""
    tree = tmp_path / "tree"
    tree.mkdir()
    for name in ("__init__.py", "py.typed", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree)
    for name in (*LAYERS, "tests", "docs"):
        shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
    with tarfile.open(built("sdist", tree, tmp_path / "sdist")) as packed:
        packed.extractall(tmp_path / "unpacked", filter="data")
    (source,) = (tmp_path / "unpacked").iterdir()
    site = tmp_path / "site"
    with ZipFile(built("wheel", source, tmp_path / "wheel")) as wheel:
        wheel.extractall(site)
    files = {path.relative_to(site / "backpass") for path in (site / "backpass").rglob("*.*")}
    there = {path.relative_to(tree) for layer in LAYERS for path in (tree / layer).rglob("*.*")}
    assert files == there | {Path("__init__.py"), Path("py.typed")}
    step = "bp.compile(lambda x: bp.value_and_grad(lambda x: (x * x).sum())(x))"
    here = f"import backpass as bp, jax.numpy as jnp; print(bp.__file__, {step}(jnp.ones(3))[0])"
    command_line = "from backpass.cli.main import main; main(['--help'])"
    for code, wanted in ((here, f"{site}/backpass/__init__.py 3.0"), (command_line, "bench")):
        run = subprocess.run(
            [sys.executable, "-P", "-c", code],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(site)},
            capture_output=True,
            check=True,
            text=True,
        )
        assert wanted in run.stdout
