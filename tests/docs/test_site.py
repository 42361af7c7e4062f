"""The site builds without a warning, and its reference holds every public name."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

import backpass
from backpass import dynamic
from docs.blocks import ROOT


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-P", "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    told = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    built = subprocess.run(command, cwd=ROOT, env=told, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    assert "WARNING" not in built.stderr
    return folder


def test_every_public_name_has_an_entry(site):
    pages = "".join(page.read_text() for page in site.joinpath("reference").glob("*.html"))
    entries = set(re.findall(r'id="(backpass[\w.]*)"', pages))
    public = {f"backpass.{name}" for name in backpass.__all__}
    public |= {f"backpass.ir.{name}" for name in backpass.ir.__all__}
    public |= {f"backpass.dynamic.{name}" for name in dynamic.__all__}
    absent = {name for name in public if not any(_tells(entry, name) for entry in entries)}
    assert absent == {"backpass.__version__"}


def _tells(entry: str, name: str) -> bool:
    """An entry of the name itself, of what is in it, or, for errors, where they are defined."""
    errors = name.replace("backpass.", "backpass.ir.errors.")
    return entry in {name, errors} or entry.startswith(f"{name}.")


def test_pages_fetch_nothing(site):
    """Scripts, styles, fonts and pictures come with the site."""
    pages = [page.read_text() for page in site.rglob("*.html")]
    assert len(pages) > 20
    sources = {
        source
        for page in pages
        for source in re.findall(r'<(?:script|img|link)[^>]+(?:src|href)="([^"]+)"', page)
    }
    assert sources and [source for source in sources if "://" in source] == []


def test_pages_outside_of_docs_are_there(site):
    """With their links turned: the benchmarks' page leads to those of docs/, and the other way."""
    text = site.joinpath("benchmarks/index.html").read_text()
    assert 'href="../fusion.html"' in text and 'href="memory/index.html"' in text
    assert 'href="benchmarks/memory/index.html' in site.joinpath("explain.html").read_text()
