"""Run the guided examples and keep their outputs: ``python docs/examples/run.py [NAME ...]``, all of them by default.

NAME.py is what one edits: cells in the percent format, the text in comments. NAME.ipynb is made from it, with outputs,
and without anything that differs from one run to the next for no reason.
"""

import base64
import io
import sys
from pathlib import Path

import jupytext
import nbformat
from nbclient import NotebookClient
from PIL import Image

FOLDER = Path(__file__).resolve().parent
NAMES = (
    "first_flow",
    "straight_against_standard",
    "rank_loss",
    "cross_entropy",
    "physics_residual",
    "your_own_model",
    "kernel_of_a_model",
)


def execute(name: str) -> nbformat.NotebookNode:
    """The notebook of NAME.py with the outputs of its cells."""
    notebook = jupytext.read(FOLDER / f"{name}.py")
    notebook.metadata = {
        "kernelspec": {
            "display_name": "Python 3",
            "language": "python",
            "name": "python3",
        },
        "language_info": {"name": "python"},
    }
    for i, cell in enumerate(notebook.cells):
        cell["id"] = f"{name}-{i}"
        cell.metadata = {}
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    client = NotebookClient(
        notebook,
        timeout=600,
        record_timing=False,
        resources={"metadata": {"path": str(FOLDER)}},
    )
    client.execute()
    for cell in notebook.cells:
        for output in cell.get("outputs", ()):
            if "image/png" in output.get("data", {}):
                output.data["image/png"] = small_png(output.data["image/png"])
    return notebook


def small_png(encoded: str) -> str:
    """The picture with a palette of 128 colours: a third of the bytes, and nobody sees it."""
    image = Image.open(io.BytesIO(base64.b64decode(encoded))).convert("RGB")
    buffer = io.BytesIO()
    image.quantize(128, dither=Image.Dither.NONE).save(
        buffer, format="png", optimize=True
    )
    return base64.b64encode(buffer.getvalue()).decode()


def main(names: list[str]) -> None:
    """Run the named examples one after the other and write their notebooks."""
    unknown = set(names) - set(NAMES)
    if unknown:
        raise SystemExit(
            f"examples: expected names among {', '.join(NAMES)}, got {', '.join(sorted(unknown))}"
        )
    for name in names or NAMES:
        notebook = execute(name)
        path = FOLDER / f"{name}.ipynb"
        nbformat.write(notebook, path)
        print(f"{path.name}: {path.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main(sys.argv[1:])
