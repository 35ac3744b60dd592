"""Make records from the parts that `fit.py` and `physics.py` wrote.

    python benchmarks/merge.py PART.json ... [--out FOLDER]

One record per benchmark of fits, one per equation. A section that the record has already and no part has is kept.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import fit
import parts
import physics


def records(found: list[dict[str, Any]], folder: Path) -> dict[Path, dict[str, Any]]:
    """Path → record."""
    made: dict[Path, dict[str, Any]] = {}
    of_fits, of_equations = ([part for part in found if part["benchmark"] == name] for name in ("fit", "physics"))
    if of_fits:
        path = folder / "fit.json"
        kept = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"benchmark": "fit"}
        made[path] = kept | parts.merged(fit.SECTIONS, of_fits)
    for name, section in parts.merged(physics.SECTIONS, of_equations).items():
        made[folder / f"physics_{name}.json"] = {"benchmark": f"physics_{name}"} | section
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="+", type=Path, metavar="PART.json")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/records"), metavar="FOLDER")
    options = parser.parse_args()
    try:
        made = records([json.loads(path.read_text(encoding="utf-8")) for path in options.parts], options.out)
    except ValueError as error:
        parser.error(str(error))
    options.out.mkdir(parents=True, exist_ok=True)
    for path, record in made.items():
        path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        print(f"record: {path}")


if __name__ == "__main__":
    main()
