"""What an installation holds, and what `import backpass` costs."""

import json
import subprocess
import sys
import tomllib
from importlib import import_module
from pathlib import Path

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
