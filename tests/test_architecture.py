"""What holds for the package as a whole: layers, sizes, names, the cost of importing it.

Run as a script this file rewrites the snapshot of the public names, ``tests/public_names.txt``.
"""

import ast
import inspect
import io
import re
import statistics
import subprocess
import sys
import tokenize
import tomllib
from enum import Enum
from pathlib import Path
from types import ModuleType

import pytest

import chordflow

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "src" / "chordflow"
SNAPSHOT = ROOT / "tests" / "public_names.txt"
FILES = sorted(PACKAGE.rglob("*.py"))

# Top to bottom; names on one line are neighbours that do not import each other. A folder counts as one name.
LAYERS = (
    ("__main__",),
    ("cli",),
    ("report",),
    ("bench", "kernel_run"),
    ("experiment",),
    ("recording", "watch"),
    ("diagnosis",),
    ("verification",),
    ("setting",),
    ("comparison", "config"),
    ("sklearn",),
    ("optim", "physics"),
    ("training",),
    ("strides",),
    ("integration",),
    ("arguments", "system"),
    ("trajectory", "events", "progress_bar"),
    ("measures", "results"),
    ("geometry",),
    ("flows",),
    ("velocities", "clocks"),
    ("solve",),
    ("filters",),
    ("problem",),
    ("jacobian",),
    ("kernel",),
    ("record",),
    ("figures",),
    ("theory",),
    ("losses", "data", "models"),
    ("projection", "sources", "files"),
    ("environment", "extras", "bounds", "interruption", "lookup", "memory", "parameters"),
)
RANK = {name: len(LAYERS) - i for i, names in enumerate(LAYERS) for name in names}

MAX_FILE_LINES, MAX_FUNCTION_LINES = 400, 60

# Loaded by the functions that need them, never by `import chordflow`.
LAZY = ("sklearn", "matplotlib", "xarray", "orbax", "h5netcdf", "h5py", "pandas", "flax", "tqdm", "rich", "wandb")

IMPORT_COST = 1.2


def module_of(path: Path) -> str:
    """The name in LAYERS that a file of the package belongs to; '' for the package itself."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return "" if parts == ("__init__",) else parts[0]


def is_module(name: str) -> bool:
    """Whether the package has such a file or folder, in LAYERS or not."""
    return (PACKAGE / name).is_dir() or (PACKAGE / f"{name}.py").is_file()


def imported_modules(path: Path) -> set[str]:
    """Names below ``chordflow.`` that a file imports, at any depth of the code; '' for the package itself."""
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            dotted = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = parts[: len(parts) - node.level] if node.level else ()
            prefix = ".".join([*base, *([node.module] if node.module else [])])
            dotted = [f"{prefix}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in dotted:
            head, *rest = name.split(".")
            if head == "chordflow":
                # `from chordflow import Name` reaches through the package, which imports everything.
                found.add(rest[0] if rest and (rest[0] in RANK or is_module(rest[0])) else "")
    return found


def layer_violations(files: list[Path]) -> list[str]:
    """One line for each import that does not point down the list; modules missing there are another test's."""
    lines = []
    for path in files:
        module = module_of(path)
        if module not in RANK:
            continue
        for other in sorted(imported_modules(path) - {module}):
            if other and other not in RANK:
                continue
            if not other and module == "cli":
                continue  # nothing imports the command line, so it may use the package as its users do
            if not other:
                lines.append(f"{module} imports the package chordflow: import the module that defines the name")
            elif RANK[other] >= RANK[module]:
                lines.append(f"{module} imports {other}, which is not below it")
            elif module == "theory" and other != "losses":
                lines.append(f"theory imports {other}: it may import losses only")
    return lines


def code_lines(source: str) -> set[int]:
    """Numbers of the lines that hold code: not blank, not only a comment, not part of a docstring."""
    skipped = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in skipped:
            lines.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0] if node.body else None
            if (
                isinstance(first, ast.Expr)
                and isinstance(first.value, ast.Constant)
                and isinstance(first.value.value, str)
            ):
                lines.difference_update(range(first.lineno, (first.end_lineno or first.lineno) + 1))
    return lines


def functions(source: str) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
    """All functions and methods of a file, nested ones too."""
    return [n for n in ast.walk(ast.parse(source)) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]


def public_names() -> list[str]:
    """Each public name with its parameters; for a public module also the public names it defines."""
    lines = []
    for name in chordflow.__all__:
        value = getattr(chordflow, name)
        lines.append(described(f"chordflow.{name}", value))
        if isinstance(value, ModuleType):
            lines += [
                described(f"chordflow.{name}.{k}", v)
                for k, v in vars(value).items()
                if callable(v) and not k.startswith("_") and defining_module(v).startswith(value.__name__)
            ]
    return sorted(lines)


def defining_module(value: object) -> str:
    """Where a function or class comes from; '' for what does not say."""
    return getattr(value, "__module__", None) or ""


def described(name: str, value: object) -> str:
    """``name(parameters)`` without annotations and defaults, which may change without breaking a caller."""
    # The signature of an enumeration is Python's own, and another one in each version.
    if isinstance(value, ModuleType) or not callable(value) or (isinstance(value, type) and issubclass(value, Enum)):
        return name
    try:
        parameters = inspect.signature(value).parameters.values()
    except ValueError:  # built-in exceptions have no signature
        return name
    bare = [p.replace(annotation=p.empty, default=p.empty) for p in parameters]
    marked = [f"{p}=" if q.default is not q.empty else str(p) for p, q in zip(bare, parameters, strict=True)]
    first_keyword = next((i for i, p in enumerate(bare) if p.kind is p.KEYWORD_ONLY), None)
    if first_keyword is not None and not any(p.kind is p.VAR_POSITIONAL for p in bare):
        marked.insert(first_keyword, "*")
    return f"{name}({', '.join(marked)})"


def run_python(code: str) -> str:
    """Standard output of a fresh interpreter."""
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.strip()


def test_each_file_has_a_layer():
    missing = sorted({module_of(path) for path in FILES} - {"", *RANK})
    assert not missing, f"add {missing} to LAYERS in tests/test_architecture.py, at the height it belongs"


def test_imports_point_down():
    assert layer_violations(FILES) == []


def test_the_layer_check_sees_each_kind_of_import(tmp_path, monkeypatch):
    package = tmp_path / "chordflow"
    (package / "solve").mkdir(parents=True)
    monkeypatch.setattr(sys.modules[__name__], "PACKAGE", package)
    sources = {
        "losses.py": "from chordflow import theory",
        "theory.py": "def f():\n    import chordflow.models",
        "record.py": "from chordflow import open_run",
        "flows.py": "from .velocities import Line\nfrom chordflow.filters import Damped",  # allowed
        "solve/dense.py": "from ..jacobian import Jacobian\nfrom . import policy\nfrom .. import flows",
    }
    for name, text in sources.items():
        (package / name).write_text(text)
    assert layer_violations([package / name for name in sources]) == [
        "losses imports theory, which is not below it",
        "theory imports models: it may import losses only",
        "record imports the package chordflow: import the module that defines the name",
        "solve imports flows, which is not below it",
    ]


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_files_and_functions_stay_small(path):
    source = path.read_text(encoding="utf-8")
    lines = code_lines(source)
    assert len(lines) <= MAX_FILE_LINES, f"{path.name} has {len(lines)} lines of code: split it by what its parts do"
    for function in functions(source):
        size = len(lines & set(range(function.lineno, (function.end_lineno or function.lineno) + 1)))
        assert size <= MAX_FUNCTION_LINES, f"{path.name}: {function.name} has {size} lines of code"


def test_code_lines_leaves_out_comments_blanks_and_docstrings():
    source = (
        '"""Module\ndocs."""\n\n# comment\ndef f():\n    """Docs."""\n    x = """two\nlines"""  # why\n    return x\n'
    )
    assert code_lines(source) == {5, 7, 8, 9}


def test_no_module_bears_the_name_of_a_public_function():
    modules = {module_of(path) for path in FILES} | {path.stem for path in FILES}
    functions_only = {line.split("(")[0].rsplit(".", 1)[1] for line in public_names() if "(" in line}
    assert modules & functions_only == set(), "a function that shadows a module of its name: rename one"


def test_public_names_have_docstrings():
    for name in chordflow.__all__:
        value = getattr(chordflow, name)
        # A dataclass without a docstring gets its signature as one.
        own = value.__doc__ or ""
        assert own.strip(), f"chordflow.{name} has no docstring"
        assert not own.startswith(f"{name}("), f"chordflow.{name} has only a generated docstring"


def test_public_names_are_those_of_the_snapshot():
    expected = SNAPSHOT.read_text(encoding="utf-8").splitlines()
    difference = sorted(set(public_names()) ^ set(expected))
    assert public_names() == expected, (
        f"public names changed: {difference}. If that is meant, run `.venv/bin/python tests/test_architecture.py`, "
        "commit tests/public_names.txt, and say in CHANGELOG.md what breaks"
    )


def test_importing_changes_no_flag_and_loads_no_heavy_module():
    code = (
        "import sys, jax; before = dict(jax.config.values); import chordflow; "
        "changed = [k for k, v in jax.config.values.items() if before.get(k) != v]; "
        f"print(changed, [m for m in {LAZY!r} if m in sys.modules])"
    )
    assert run_python(code) == "[] []"


def test_what_messages_and_pages_name_is_there_after_a_bare_import():
    """In an interpreter that has loaded nothing else: the message of ``traj.plot`` sends one to ``cf.figures``."""
    code = "import chordflow as cf; print(cf.figures.output_plane.__name__, cf.experiment.run.__name__)"
    assert run_python(code) == "output_plane run"


@pytest.mark.slow
def test_importing_costs_little_more_than_diffrax():
    seconds: dict[str, list[float]] = {"diffrax": [], "chordflow": []}
    for _ in range(9):  # interleaved, so that a busy minute slows both
        for name, runs in seconds.items():
            # Seconds of the processor: those of the clock measured 1.1 to 1.3 for the same files, by what else ran.
            code = f"import time; start = time.process_time(); import {name}; print(time.process_time() - start)"
            runs.append(float(run_python(code)))
    ratio = statistics.median(seconds["chordflow"]) / statistics.median(seconds["diffrax"])
    assert ratio <= IMPORT_COST, f"import chordflow costs {ratio:.2f} times import diffrax"


def test_the_version_is_the_same_everywhere():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    citation = re.search(r"^version: (.+)$", (ROOT / "CITATION.cff").read_text(encoding="utf-8"), re.MULTILINE)
    assert citation is not None
    assert chordflow.__version__ == project["version"] == citation[1]
    assert project["version"] in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_the_changelog_has_every_public_name():
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    missing = [name for name in chordflow.__all__ if not re.search(rf"`cf\.{name}\b", text)]
    assert missing == [], "say in CHANGELOG.md what is new, as `cf.name`"


def test_contributing_lists_what_is_there():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    rows = [row.split("|")[1] for row in text.splitlines() if row.startswith("| `")]
    names = [name.rstrip("/") for row in rows for name in re.findall(r"`([a-z_]+/?)`", row)]
    assert len(names) > 20
    assert [name for name in names if not is_module(name)] == []
    # From top to bottom, as LAYERS has them.
    highest = [max(RANK[name.rstrip("/")] for name in re.findall(r"`([a-z_]+/?)`", row)) for row in rows]
    assert highest == sorted(highest, reverse=True)


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="asks git which files are committed")
def test_no_committed_file_names_a_machine():
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    private = re.compile(rb"(?<![\w.])/(?:root|home|Users|work|opt|srv)/")
    # A file that is listed but deleted in the working tree is being removed.
    paths = [ROOT / name for name in listed.split("\0") if name and (ROOT / name).is_file()]
    assert paths
    assert [str(path) for path in paths if private.search(path.read_bytes())] == []


def test_the_pins_name_no_index():
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    assert lines
    assert [line for line in lines if not re.match(r"[a-z0-9][a-z0-9._-]*==[^\s:/]+( ; .+)?$", line)] == []


if __name__ == "__main__":
    SNAPSHOT.write_text("\n".join(public_names()) + "\n", encoding="utf-8")
