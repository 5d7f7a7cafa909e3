"""The house: the rooms of the library on their floors, and what each imports, read from the code.

`FLOORS` is the plan. `read_house` reads modules and imports without running them: `house_page`
draws the picture in the book from it, and the tests check that imports point down.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LIBRARY = "patchsae_lib"

# From the ground up. A room is a module or package of the library, or a folder outside it.
FLOORS: tuple[tuple[str, tuple[str, ...]], ...] = (
    (
        "Settings, files and the world",
        ("profiles", "parameters", "artefacts", "intervals", "distributed", "world"),
    ),
    ("Pictures and models", ("pictures", "clip", "maple", "tuning", "sae", "sparse", "training")),
    ("Tokens", ("tokens",)),
    (
        "Measurements and file formats",
        (
            *("latents", "localization", "evaluation", "truth", "names", "ablation", "remapping"),
            *("diffing", "crosscoder", "interop"),
        ),
    ),
    ("The study", ("study", "splits")),
    ("Figures and the explorer", ("figures", "explorer")),
    (
        "Commands, the book, recipes",
        ("__init__", "__main__", "jobs", "plan", "check", "book", "recipes"),
    ),
)
OUTSIDE = {"book": ("book/*.py", "book/_ext/*.py"), "recipes": ("recipes/*.py",)}


@dataclass
class Room:
    """A module, package or folder: its floor, first sentence, number of lines, and imports."""

    name: str
    floor: int
    sentence: str = ""
    lines: int = 0
    imports: set[str] = field(default_factory=set)


def module_paths(root: Path = ROOT) -> dict[str, Path]:
    """Return the files of the library and of the folders outside it, by dotted name."""
    globs = [f"{LIBRARY}/**/*.py", *(glob for globs in OUTSIDE.values() for glob in globs)]
    paths = sorted(path for glob in globs for path in root.glob(glob))
    return {dotted(path.relative_to(root)): path for path in paths}


def dotted(path: Path) -> str:
    """Return a module's name as an import writes it; of a package, the package's.

    >>> dotted(Path("patchsae_lib/world/__init__.py")), dotted(Path("recipes/card.py"))
    ('patchsae_lib.world', 'recipes.card')
    """
    return ".".join(path.with_suffix("").parts).removesuffix(".__init__")


def room_of(module: str) -> str:
    """Return the room that a module is in.

    >>> [room_of(f"patchsae_lib{name}") for name in ("", ".sae", ".world.scene")]
    ['__init__', 'sae', 'world']
    >>> room_of("recipes.card")
    'recipes'
    """
    first, *inner = module.split(".")
    return first if first != LIBRARY else inner[0] if inner else "__init__"


def imports_of(code: ast.AST, modules: Iterable[str]) -> Iterator[str]:
    """Yield those of `modules` that code imports, at its top, in functions, and for types.

    `from package import name` imports the module `package.name` if there is one, else `package`.
    The package's version (`__version__`) needs no import of what the package exports.
    """
    known = set(modules)
    for node in ast.walk(code):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in known)
        elif isinstance(node, ast.ImportFrom) and node.module in known:
            for name in (alias.name for alias in node.names if alias.name != "__version__"):
                inner = f"{node.module}.{name}"
                yield inner if inner in known else str(node.module)


def first_sentence(code: ast.Module) -> str:
    """Return the first sentence of a module's docstring.

    >>> first_sentence(ast.parse("'''Cuts CLIP in two (eqs. 1-2).  The halves are equal.'''"))
    'Cuts CLIP in two (eqs. 1-2).'
    """
    paragraph = " ".join((ast.get_docstring(code) or "").partition("\n\n")[0].split())
    return re.split(r"(?<=[.!?])(?<!eqs\.)(?<!eq\.)(?<!al\.) ", paragraph, maxsplit=1)[0]


def read_house(root: Path = ROOT) -> dict[str, Room]:
    """Return the rooms that there are, by name, from the top floor down.

    Raises `ValueError` for a module without a room in `FLOORS`, and for a room without a module.
    """
    rooms = {name: Room(name, i) for i, (_, names) in enumerate(FLOORS) for name in names}
    paths = module_paths(root)
    found = {room_of(module) for module in paths}
    if differing := sorted(found ^ set(rooms)):
        raise ValueError(f"not both in FLOORS and in the library: {', '.join(differing)}")
    for module, path in paths.items():
        text = path.read_text("utf-8")
        code, room = ast.parse(text), rooms[room_of(module)]
        room.lines += len(text.splitlines())
        room.imports |= {room_of(name) for name in imports_of(code, paths)} - {room.name}
        if module in (f"{LIBRARY}.{room.name}", LIBRARY, "book.build", "recipes"):
            room.sentence = first_sentence(code)
    return dict(reversed(rooms.items()))


def upward(rooms: Mapping[str, Room]) -> list[str]:
    """Return the imports that do not point down: to a higher floor, or in a circle on one floor.

    >>> upward({"a": Room("a", 0, imports={"b"}), "b": Room("b", 1)})
    ['a imports b']
    """
    pairs = [(room, rooms[name]) for room in rooms.values() for name in sorted(room.imports)]
    return [
        f"{room.name} imports {target.name}"
        for room, target in pairs
        if target.floor > room.floor or room.name in below(target, rooms)
    ]


def implied(room: Room, name: str, rooms: Mapping[str, Room]) -> bool:
    """Return whether a room also reaches the room `name` through another room it imports.

    >>> c = Room("c", 0)
    >>> b = Room("b", 1, imports={"c"})
    >>> a = Room("a", 2, imports={"b", "c"})
    >>> rooms = {"a": a, "b": b, "c": c}
    >>> implied(a, "c", rooms), implied(a, "b", rooms)
    (True, False)
    """
    return any(name in below(rooms[between], rooms) for between in room.imports - {name})


def below(room: Room, rooms: Mapping[str, Room]) -> set[str]:
    """Return the names of all rooms that a room imports, directly or through others."""
    reached: set[str] = set()
    todo = [room]
    while todo:
        todo = [rooms[name] for name in set().union(*(r.imports for r in todo)) - reached]
        reached |= {r.name for r in todo}
    return reached
