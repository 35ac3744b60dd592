"""The documentation site: built strictly, every public name on it, nothing fetched from elsewhere."""

import inspect
import re
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import pytest

import chordflow

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
SNAPSHOT = (ROOT / "tests" / "public_names.txt").read_text(encoding="utf-8")
# What a page would load when it is opened; links to follow are not among it.
LOADED = re.compile(r"""<(?:script|img|iframe|link)\b[^>]*?\b(?:src|href)=["'](?:https?:)?//[^"']*""")


def public_names(snapshot: str) -> list[str]:
    """The dotted names of the snapshot of public names, without parameters."""
    return [line.split("(")[0] for line in snapshot.splitlines() if line]


def resolved(name: str) -> Any:
    """What a dotted name below the package stands for."""
    value: Any = chordflow
    for part in name.split(".")[1:]:
        value = getattr(value, part)
    return value


def undocumented(names: list[str], documented: set[str]) -> list[str]:
    """Names that are not documented, under themselves or another public name of the same object."""
    known = {id(resolved(name)) for name in names if name in documented and not inspect.ismodule(resolved(name))}
    return [name for name in names if name not in documented and id(resolved(name)) not in known]


def inventory(site: Path) -> set[str]:
    """Python names of a site's objects.inv: four lines of text, then ``name domain:role priority page title``."""
    data = (site / "objects.inv").read_bytes().split(b"\n", 4)[4]
    rows = [line.split(" ") for line in zlib.decompress(data).decode().splitlines()]
    return {row[0] for row in rows if row[1].startswith("py:")}


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """The site, built as `make docs` does."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-E", "-b", "html", str(DOCS), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder


def test_a_missing_name_is_found():
    names = ["chordflow.evolve", "chordflow.adapted", "chordflow.flows", "chordflow.flows.adapted"]
    assert undocumented(names, {"chordflow.adapted", "chordflow.flows"}) == ["chordflow.evolve"]
    assert undocumented(names, {"chordflow.evolve", "chordflow.adapted"}) == ["chordflow.flows"]


def test_loading_from_elsewhere_is_found():
    assert LOADED.search('<script async src="https://cdn.example.org/x.js"></script>')
    assert LOADED.search("<link rel='stylesheet' href='//fonts.example.org/css'>")
    assert not LOADED.search('<a href="https://arxiv.org/abs/2408.01517"><img src="_images/outputs.png"></a>')


@pytest.mark.slow
def test_every_public_name_is_on_the_site(site):
    assert undocumented(public_names(SNAPSHOT), inventory(site)) == []


@pytest.mark.slow
def test_the_site_loads_nothing_from_elsewhere(site):
    pages = sorted(site.rglob("*.html"))
    assert len(pages) > 15
    loading = {str(page.relative_to(site)): LOADED.findall(page.read_text(encoding="utf-8")) for page in pages}
    assert {page: found for page, found in loading.items() if found} == {}
    remote = re.compile(r"(@import|url\()\s*['\"]?(https?:)?//")
    styles = [sheet.name for sheet in site.rglob("*.css") if remote.search(sheet.read_text(encoding="utf-8"))]
    assert styles == []
