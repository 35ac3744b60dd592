"""Long benchmarks in pieces: a piece measures some sections, methods and seeds and writes its rows to a part.

`merge.py` makes the records from one part or several, so that pieces can be measured one after another, or elsewhere.
"""

import argparse
import json
import os
import re
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from environment import describe

Row = dict[str, Any]
"""What one method did from one seed: "method", "seed", and what its section measures."""


class Section(NamedTuple):
    """One table of a record.

    Parameters
    ----------
    measure
        Options → rows, one at a time.
    summarise
        The rows of all parts → results of the record.
    seeds
        Those of a whole record.
    methods
        Names that ``--methods`` may name.
    dtype
        What is computed in.
    check
        Raises ValueError where something that the section needs is not there.
    """

    measure: Callable[[argparse.Namespace], Iterable[Row]]
    summarise: Callable[[list[Row]], Any]
    seeds: range
    methods: tuple[str, ...]
    dtype: str = "float64"
    check: Callable[[argparse.Namespace], object] = lambda _: None


def seeds(words: str) -> list[int]:
    """Numbers of the command line: "3" or "0-9", both ends included."""
    found = re.fullmatch(r"(\d+)(?:-(\d+))?", words)
    last = found and int(found[2] or found[1])
    if not found or last is None or last < int(found[1]):
        raise argparse.ArgumentTypeError(f"expected a number or FIRST-LAST such as 0-9, got {words!r}")
    return list(range(int(found[1]), last + 1))


def parser(description: str | None, names: Iterable[str]) -> argparse.ArgumentParser:
    """What all long benchmarks take."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sections", nargs="*", metavar="SECTION", help=f"{', '.join(names)} (default: all)")
    parser.add_argument("--seeds", type=seeds, help="one seed, or FIRST-LAST (default: those of a whole record)")
    parser.add_argument("--methods", nargs="+", metavar="METHOD", help="only these (default: all)")
    parser.add_argument("--smoke", action="store_true", help="tiny sizes, to see that everything runs")
    parser.add_argument("--out", type=Path, help="where the part goes, a JSON file (default: standard output)")
    return parser


def run(name: str, sections: Mapping[str, Section], parser: argparse.ArgumentParser, words: list[str] | None) -> None:
    """Measure the sections that are asked for; the part is written after each, for the next may be cut short."""
    options = parser.parse_args(words)
    wanted = options.sections or list(sections)
    if unknown := [word for word in wanted if word not in sections]:
        parser.error(f"sections: expected some of {', '.join(sections)}, got {', '.join(unknown)}")
    known = dict.fromkeys(method for word in wanted for method in sections[word].methods)
    if unknown := [method for method in options.methods or () if method not in known]:
        parser.error(f"methods: expected some of {', '.join(known)}, got {', '.join(unknown)}")
    for word in wanted:
        try:
            sections[word].check(options)
        except ValueError as error:
            parser.error(str(error))
    part: dict[str, Any] = {"benchmark": name, "environment": describe(), "sections": {}}
    for word in wanted:
        part["sections"][word] = measured(sections[word], options)
        if options.out:
            options.out.parent.mkdir(parents=True, exist_ok=True)
            options.out.write_text(json.dumps(part) + "\n", encoding="utf-8")
    print(f"part: {options.out}" if options.out else json.dumps(part))


def measured(section: Section, options: argparse.Namespace) -> dict[str, Any]:
    """Rows of one section, and what they were measured with."""
    options = argparse.Namespace(**vars(options))
    options.seeds = options.seeds or ([0] if options.smoke else list(section.seeds))
    options.methods = [method for method in section.methods if method in (options.methods or section.methods)]
    start, load, rows = time.time(), os.getloadavg()[0], []
    for row in section.measure(options):
        rows.append(row | {"load": round(os.getloadavg()[0], 2)})
        print({key: value for key, value in rows[-1].items() if key != "curve"}, flush=True)
    # Not where the data lie: a record names no folder.
    said = {key: value for key, value in vars(options).items() if key not in ("sections", "data", "out")}
    about = {"load_at_start": round(load, 2), "seconds": round(time.time() - start), "options": said}
    return {"dtype": section.dtype, "about": about, "rows": rows}


def merged(sections: Mapping[str, Section], parts: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Section → environment, parts and results, from all parts that have it.

    Raises
    ------
    ValueError
        Parts of another commit, device or version than the first; a method that has the same seed twice.
    """
    found: dict[str, dict[str, Any]] = {}
    for name, section in sections.items():
        having = [part for part in parts if name in part["sections"]]
        if not having:
            continue
        environment = having[0]["environment"]
        for part in having[1:]:
            if differing := [key for key in environment if part["environment"].get(key) != environment[key]]:
                raise ValueError(f"{name}: the parts differ in {', '.join(differing)}: measure them again on one")
        pieces = [part["sections"][name] for part in having]
        rows = sorted((row for piece in pieces for row in piece["rows"]), key=lambda row: row["seed"])
        keys = [(row.get("data"), row["method"], row["seed"]) for row in rows]
        if twice := sorted({key[1:] for key in keys if keys.count(key) > 1}):
            raise ValueError(f"{name}: {twice[0]} is in two parts: leave one of them out")
        found[name] = {
            "environment": environment | {"dtype": section.dtype},
            "parts": [piece["about"] for piece in pieces],
            "results": section.summarise(rows),
        }
    return found
