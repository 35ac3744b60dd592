"""The documentation site: built strictly, every public name on it, nothing fetched, examples that run."""

import inspect
import json
import os
import re
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import jupytext
import nbformat
import pytest

import chordflow

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
EXAMPLE_FOLDER = DOCS / "examples"
EXAMPLES = sorted(path.stem for path in EXAMPLE_FOLDER.glob("*.ipynb"))
# Text in the source of an example → what stands there in the test, where it would take minutes otherwise.
SMALLER = {
    "physics_residual": {
        "length=5000": "length=50",
        "np.arange(1, 5001)": "np.arange(1, 51)",
        "max_steps=60": "max_steps=5",
    },
}
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


@pytest.mark.parametrize("name", EXAMPLES)
def test_a_notebook_is_its_source_with_outputs(name):
    """What is shown was made by what stands in NAME.py: `make examples` runs them again."""
    source = jupytext.read(EXAMPLE_FOLDER / f"{name}.py")
    notebook = nbformat.read(EXAMPLE_FOLDER / f"{name}.ipynb", as_version=4)
    nbformat.validate(notebook)
    assert [(c.cell_type, c.source) for c in notebook.cells] == [(c.cell_type, c.source) for c in source.cells]
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))


@pytest.mark.parametrize("name", EXAMPLES)
def test_outputs_are_presentable(name):
    path = EXAMPLE_FOLDER / f"{name}.ipynb"
    assert path.stat().st_size < 400_000
    notebook = nbformat.read(path, as_version=4)
    assert 8 <= len(notebook.cells) <= 26
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    assert outputs
    assert troubles(outputs) == []


def troubles(outputs: list[Any]) -> list[str]:
    """What does not belong into a stored output: errors, warnings, paths and names of a machine."""
    found = []
    for output in outputs:
        if output["output_type"] == "error" or output.get("name") == "stderr":
            found.append(str(output)[:200])
        text = output.get("text", "") + "".join(output.get("data", {}).get("text/plain", ""))
        found += re.findall(r"(?:/(?:home|root|tmp|work|usr|Users)/\S*|Traceback|0x[0-9a-f]{6,})", text)
    return found


def test_troubles_are_found():
    assert troubles([{"output_type": "stream", "name": "stderr", "text": "careful"}])
    assert troubles([{"output_type": "error", "ename": "ValueError"}])
    assert troubles([{"output_type": "stream", "name": "stdout", "text": "wrote /tmp/x.png"}])
    assert troubles([{"output_type": "execute_result", "data": {"text/plain": "<object at 0x7f3a2b1c>"}}])
    assert not troubles([{"output_type": "stream", "name": "stdout", "text": "cost 0.12 -> 4e-17"}])


def test_numbers_of_the_comparison_are_those_of_the_records():
    """A record that is taken anew fails here until the page says what it says."""
    page = (DOCS / "compare.md").read_text(encoding="utf-8")

    def record(name: str) -> Any:
        return json.loads((ROOT / "benchmarks" / "records" / f"{name}.json").read_text(encoding="utf-8"))

    diabetes, california = (result["summary"] for result in record("fit")["seconds"]["results"])
    for name, row in (("cf.fit", "`cf.fit`"), ("optax L-BFGS", "optax L-BFGS"), ("optax Adam 0.01", "optax Adam")):
        small, large = (data[name]["seconds"]["median"] for data in (diabetes, california))
        assert re.search(rf"^\| {re.escape(row)}[^|]*\| {small:.2f} \| {large:.1f} \|$", page, re.M), name
    poisson = record("physics_poisson_2d")["results"]
    natural, ours = poisson["energy natural gradient"], poisson["cf.fit"]
    assert natural["below 1e-06"]["seeds"] == natural["seeds"] == 3
    assert f"in {natural['below 1e-06']['median_seconds']:.1f} seconds by the median" in page
    heat = record("physics_heat")["results"]
    assert heat["cf.fit"]["below 1e-06"]["seeds"] == 9
    assert heat["energy natural gradient"]["below 1e-06"]["seeds"] == 0
    assert f"a median of {heat['cf.fit']['below 1e-06']['median_seconds']:.0f} seconds" in page
    assert f"one stayed at {heat['energy natural gradient']['end']['worst']:.2f}" in page
    assert f"a median of {ours['below 1e-06']['median_seconds']:.1f}" in re.sub(r"\*\*|\s+", " ", page).replace(
        "  ", " "
    )
    assert len(ours["below 1e-06"]["steps"]) == 30
    assert f"a median of {ours['end']['median']:.1e}".replace("e-0", "e-") in page
    assert f"{poisson['optimistix Levenberg–Marquardt']['end']['median']:.1e}".replace("e-0", "e-") in page
    assert f"{poisson['scipy BFGS']['end']['median']:.1e}".replace("e-0", "e-") in page
    speed = record("gram")["speed"]
    assert f"({speed[0]['times_faster_than_dense']:.0f} times as fast" in page
    assert f"({speed[0]['times_faster_than_per_leaf']:.0f} times for the first)" in page
    assert f"{speed[1]['times_faster_than_dense']:.0f} times for 64" in page
    assert f"({record('gram_netket')['netket'][0]['times_faster_than_netket']:.0f} times)" in page


def test_each_example_is_in_the_navigation():
    index = (DOCS / "index.md").read_text(encoding="utf-8")
    assert len(EXAMPLES) == 7
    assert [name for name in EXAMPLES if f"\nexamples/{name}\n" not in index] == []


@pytest.mark.slow
@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_runs(name, tmp_path):
    """In a process of its own: an example sets what a newcomer sets, and nothing more."""
    text = (EXAMPLE_FOLDER / f"{name}.py").read_text(encoding="utf-8")
    for long, short in SMALLER.get(name, {}).items():
        assert long in text
        text = text.replace(long, short)
    run(text, tmp_path)


@pytest.mark.slow
def test_the_first_page_runs(tmp_path):
    (block,) = re.findall(r"^```python\n(.*?)^```$", (DOCS / "index.md").read_text(encoding="utf-8"), re.M | re.S)
    run(block, tmp_path)


def run(text: str, folder: Path) -> None:
    """Run a program in a process of its own; a warning is an error."""
    script = folder / "example.py"
    script.write_text(text, encoding="utf-8")
    command = [sys.executable, "-W", "error", str(script)]
    env = {**os.environ, "MPLBACKEND": "agg", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
