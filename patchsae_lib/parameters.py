"""The parameters of notebooks and commands: names, defaults, and what papermill injects."""

from __future__ import annotations

import argparse
import ast
import os
import re
from collections.abc import Collection, Iterable, Sequence


def assignments(code: str) -> dict[str, ast.expr]:
    """Return the right-hand sides of a cell's top-level assignments, by name.

    >>> sorted(assignments("a = 1\\nb: str = ''"))
    ['a', 'b']
    """
    values: dict[str, ast.expr] = {}
    for statement in ast.parse(code).body:
        if isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name):
            values[statement.targets[0].id] = statement.value
        elif isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
            values[statement.target.id] = statement.value or ast.Constant(None)
    return values


def check_names(given: Iterable[str], known: Collection[str]) -> None:
    """Raise `ValueError` if a parameter of `given` is not among the `known` ones."""
    if unknown := ", ".join(map(repr, sorted({*given} - {*known}))):
        raise ValueError(f"unknown parameter {unknown}; known are {', '.join(sorted(known))}")


def injected(cells: Sequence[str]) -> list[str]:
    """Return the names of the parameters that papermill injected into a running notebook.

    `cells` is the code run so far (IPython's `In`); the first non-empty one holds the defaults.
    Raises `ValueError` for a parameter that the notebook does not have.
    """
    by_papermill = [code for code in cells if code.startswith("# Parameters\n")]
    if not by_papermill:
        return []
    names = list(assignments(by_papermill[-1]))
    check_names(names, assignments(next(code for code in cells if code)))
    return names


def absolute(text: str, start: str = "") -> str:
    """Return a text with the path in it, after `folder:` or `wds:` or of a profile or of weights,
    as an absolute one; `~` is the user's home, and relative paths begin at `start`."""
    begin = re.match(r"(folder:|wds:)(?=.)|(?=.+\.(toml|safetensors)$)(?!.+://)", text, re.I)
    if not begin:
        return text
    path = os.path.join(start, os.path.expanduser(text[begin.end() :]))
    return begin[0] + os.path.abspath(path)


def profile_parser(prog: str, about: str) -> argparse.ArgumentParser:
    """Make the parser of a command that takes `--profile` and, as often as wanted, `-p NAME VALUE`
    (`parameters`: a list of pairs)."""
    parser = argparse.ArgumentParser(prog=prog, description=about)
    parser.add_argument("--profile", default="world", help="the name of one, or a .toml of yours")
    parser.add_argument(
        "-p", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"), dest="parameters",
        help="a parameter, e.g. -p images folder:/my/photos",
    )  # fmt: skip
    return parser
