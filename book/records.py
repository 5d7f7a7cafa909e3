"""What a notebook's run was made of, read, wrote and measured, and whether it still holds.

A record lies beside the executed copy. A notebook runs again only if something in it has changed:
its code cells, its parameters, the profile, the library's code that it can reach, the files that
ship with the library or that the parameters name, the packages, its claims' texts, or an artefact
that it has read or written.
"""

from __future__ import annotations

import ast
import hashlib
import json
import os
import platform
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from functools import cache
from importlib.metadata import packages_distributions, version
from pathlib import Path
from typing import Any

from execution import read_cells
from patchsae_lib import EXPORTS
from patchsae_lib.artefacts import DATA, ROOT, config_hash, plain, sha256, write_json
from patchsae_lib.profiles import Profile

LIBRARY = "patchsae_lib"
CLAIMS = DATA / "paper" / "claims.toml"
TEXTS = {".md", ".webp"}  # files in data/ that only the pages read
DIGITS = 12  # of a hash on a receipt

Parts = dict[str, dict[str, Any]]  # kind → name → what tells one version from another


@dataclass
class Record:
    """One run of a notebook.

    `made_of`: what decides its outputs. `text` and `executed`: hashes of the source and of the
    executed copy. `reads`: artefact, as seen from the run's folder → (the notebook that writes it,
    its fingerprint). `writes`: artefact → fingerprint. `claims`: what it has recorded for the
    scoreboard.
    """

    made_of: Parts
    text: str
    executed: str
    seconds: float
    reads: dict[str, list[str]] = field(default_factory=dict)
    writes: dict[str, str] = field(default_factory=dict)
    claims: list[dict[str, Any]] = field(default_factory=list)

    def save(self, path: Path) -> None:
        """Write the record, whole or not at all."""
        write_json(path, asdict(self))

    def receipt(self) -> dict[str, Any]:
        """Return where this run's numbers come from: the profile, its seeds, the first digits of
        the SHA-256 of the notebook and of the fingerprint of each artefact that it has read, and
        by which notebook that was written."""
        reads = {name: [by, hash[:DIGITS]] for name, (by, hash) in sorted(self.reads.items())}
        made_with = self.made_of["profile"]
        return {
            "notebook": self.text[:DIGITS], "reads": reads,
            "profile": made_with["name"], "seeds": made_with["seeds"],
        }  # fmt: skip


def read_record(path: Path) -> Record | None:
    """Return the record of the last run, or None if there is none or it is of another format."""
    try:
        return Record(**json.loads(path.read_text("utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def read_trace(path: Path) -> list[list[Any]]:
    """Return the events that a kernel has noted so far (`artefacts.note`)."""
    lines = path.read_text("utf-8").split("\n") if path.is_file() else [""]
    return [json.loads(line) for line in lines[:-1]]  # the last line may not be whole


# --- why a notebook runs again -------------------------------------------------------------------


def changed_parts(before: Parts, now: Parts) -> str:
    """Say in a few words what a notebook is made of now and was not before; "" if nothing.

    >>> changed_parts({"code": {"sae.py": 1, "clip.py": 1}}, {"code": {"sae.py": 2, "clip.py": 1}})
    'code changed: sae.py'
    """
    for kind in now:
        old, new = before.get(kind, {}), now[kind]
        names = sorted(name for name in {*old, *new} if old.get(name) != new.get(name))
        if names:
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            listed = f": {', '.join(names[:3])}{more}" if kind != "notebook" else ""
            return f"{kind} changed{listed}"
    return ""


def changed_files(record: Record, run: Path) -> str:
    """Say which artefact in the run's folder that a notebook has read or written is not as it
    was; "" if all are."""
    expected = {name: hash for name, (_, hash) in record.reads.items()} | record.writes
    for path, hash in ((run / name, hash) for name, hash in expected.items()):
        if fingerprint(path) != hash:
            return f"{path.name} {'changed' if any(path.parent.glob(path.name)) else 'is gone'}"
    return ""


def fingerprint(path: Path) -> str:
    """Return a hash of the names and contents of the files that a path, or a pattern, names."""
    return config_hash({file.name: sha256(file) for file in path.parent.glob(path.name)})


# --- what a notebook is made of ------------------------------------------------------------------


def made_of(source: Path, parameters: Mapping[str, Any], profile: Profile) -> Parts:
    """Return all that decides the outputs of a notebook, but for artefacts of other notebooks."""
    cells = [cell for cell in read_cells(source) if cell["cell_type"] == "code"]
    codes = [without_magics("".join(cell["source"])) for cell in cells]
    modules = reachable(codes)
    claims = tomllib.loads(CLAIMS.read_text("utf-8")).items()
    named = [*strings(plain(profile)), *strings(parameters)]
    return {
        "notebook": {"cells": config_hash({"cells": cells})},
        "parameters": plain(parameters),
        "profile": plain(profile),
        "code": {name: code_hash(code) for name, code in modules.items()},
        "data": shipped_files() | {n: x for n in named if (x := named_files(n))},
        "packages": packages({x for code in [*codes, *modules.values()] for x in imported(code)}),
        "claims.toml": {id: config_hash(x) for id, x in claims if x["notebook"] == source.stem},
    }


def reachable(codes: Iterable[str]) -> dict[str, str]:
    """Return the library's modules that code imports, directly or through others: name → code."""
    library, found = read_library(), dict[str, str]()
    while codes:
        names = {name for code in codes for name in imported(code)} & set(library) - set(found)
        found |= {name: library[name] for name in sorted(names)}
        codes = [library[name] for name in names]
    return found


@cache
def imported(code: str) -> frozenset[str]:
    """Return the dotted names that code may import, wherever the import stands; a name that the
    library exports stands for its module.

    >>> sorted(imported("from patchsae_lib import Study, truth"))
    ['patchsae_lib', 'patchsae_lib.study', 'patchsae_lib.truth']
    """
    names: set[str] = set()
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    exported = {f"{LIBRARY}.{x}": f"{LIBRARY}.{m}" for m, n in EXPORTS.items() for x in n}
    names = {exported.get(name, name) for name in names}
    return frozenset(names | {parent for name in names for parent in parents(name)})


def parents(name: str) -> Iterator[str]:
    """Yield the packages that are imported with a module.

    >>> list(parents("a.b.c"))
    ['a.b', 'a']
    """
    while "." in name:
        name = name.rpartition(".")[0]
        yield name


def without_magics(code: str) -> str:
    """Return the code of a cell without lines that only IPython understands."""
    return "\n".join("" if line.startswith(("%", "!")) else line for line in code.split("\n"))


def read_library() -> dict[str, str]:
    """Return the code of the library's modules by name; a package's is that of its `__init__`."""
    paths = sorted((ROOT / LIBRARY).rglob("*.py"))
    names = (".".join(path.relative_to(ROOT).with_suffix("").parts) for path in paths)
    texts = (path.read_text("utf-8") for path in paths)
    return {name.removesuffix(".__init__"): x for name, x in zip(names, texts, strict=True)}


@cache
def code_hash(code: str) -> str:
    """Return a hash of code, whatever its comments and its layout.

    >>> code_hash("a = 1  # one") == code_hash("a = (1)"), code_hash("a = 1") == code_hash("a = 2")
    (True, False)
    """
    return hashlib.sha256(ast.dump(ast.parse(code)).encode()).hexdigest()[:16]


def packages(imports: Iterable[str]) -> dict[str, str]:
    """Return the versions of Python and of the packages of others that code imports."""
    installed = distributions()
    names = {x for name in imports if "." not in name for x in installed.get(name, ())}
    return {"python": platform.python_version(), **{name: version(name) for name in sorted(names)}}


@cache
def distributions() -> Mapping[str, list[str]]:
    """`packages_distributions`, which takes a second, once."""
    return packages_distributions()


def shipped_files() -> dict[str, str]:
    """Return a hash of each file in `data/` that notebooks may read, but for the claims' texts."""
    unread = CLAIMS, DATA / "results.json"
    paths = [p for p in sorted(DATA.rglob("*")) if p.is_file() and p.suffix not in TEXTS]
    return {str(path.relative_to(DATA)): sha256(path) for path in paths if path not in unread}


def strings(tree: Any) -> Iterator[str]:
    """Yield the texts in nested mappings and lists."""
    if isinstance(tree, str):
        yield tree
    elif isinstance(tree, Mapping | list):
        for branch in tree.values() if isinstance(tree, Mapping) else tree:
            yield from strings(branch)


def named_files(name: str) -> str:
    """Return what tells the pictures or the file that a parameter names from another version: of
    `folder:`, `wds:` and a folder's full path a hash of the names, sizes and times of files; ""
    for anything else."""
    if os.path.isabs(name) and os.path.isdir(name):
        return listing_hash(Path(name))
    kind, _, place = name.partition(":")
    if kind in ("folder", "wds"):
        folder = ROOT / Path(place).expanduser()
        return listing_hash(folder if kind == "folder" else folder.parent)
    path = ROOT / Path(name).expanduser()
    return sha256(path) if path.suffix and path.is_file() else ""


@cache
def listing_hash(folder: Path) -> str:
    """Return a hash of the names, sizes and times of all files in a folder."""
    stats = {str(path): path.stat() for path in sorted(folder.rglob("*")) if path.is_file()}
    return config_hash({name: [x.st_size, x.st_mtime_ns] for name, x in stats.items()})
