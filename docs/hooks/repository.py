"""What MkDocs has to be told of this repository: pages outside of docs/, and where the package is.

The site is the repository with docs/ for its root. Links are written as they hold in the
repository; where a page lies elsewhere on the site, `on_page_markdown` turns them.
"""

from __future__ import annotations

import os
import re
from pathlib import Path, PurePosixPath

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[2]
OUTSIDE = (
    "README.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "LICENSE",
    "benchmarks/README.md",
    "benchmarks/fusion/README.md",
    "benchmarks/memory/README.md",
    "benchmarks/results/README.md",
    "benchmarks/results/cpu.md",
    "benchmarks/results/cpu.png",
)
LINK = re.compile(r"(?<=\]\()(?![a-z]+:|#)[^)#\s]+")


def on_config(config: MkDocsConfig) -> None:
    """Link the package below a folder of its name, where griffe looks for it (see mkdocs.yml).

    The checkout is the package `backpass`, in whatever folder it lies.
    """
    package = ROOT / "build/reference/backpass"
    package.mkdir(parents=True, exist_ok=True)
    for init in ROOT.glob("*/__init__.py"):
        _link(package / init.parent.name, init.parent)
    _link(package / "__init__.py", ROOT / "__init__.py")


def _link(place: Path, target: Path) -> None:
    if not place.exists():
        place.unlink(missing_ok=True)  # a link to a checkout that has moved
        place.symlink_to(target)


def on_files(files: Files, config: MkDocsConfig) -> None:
    """Add the pages that lie outside of docs/."""
    for path in OUTSIDE:
        files.append(File.generated(config, path, abs_src_path=str(ROOT / path)))


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn links that hold in the repository into links that hold on the site."""
    here = page.file.src_uri
    folder = PurePosixPath(here if here in OUTSIDE else f"docs/{here}").parent

    def turned(link: re.Match[str]) -> str:
        target = os.path.normpath(folder / link[0])
        return os.path.relpath(target.removeprefix("docs/"), PurePosixPath(here).parent)

    return LINK.sub(turned, markdown)
