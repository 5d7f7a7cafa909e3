"""The house style, as rules that a program can check: imports point down, all is small."""

import ast
import json
import re
import statistics
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

import pytest

import house_page
import patchsae_lib
from house import FLOORS, LIBRARY, ROOT, Room, imports_of, module_paths, read_house, upward

SEPARATE = {"world", "explorer", "interop", "pictures"}  # rooms with limits of their own
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
PRONOUN = re.compile(
    r"_*(mine|ours|theirs|yours|some|any|none|there|here|told|said|seen|both|few|many|those|these"
    r"|this|that|them|they|it|its|each|every|one|others?|another|such|several|which|what|who|whose"
    r"|rest|whole|everything|anything)_*",
    re.IGNORECASE,
)


def code_cells(notebook: Path) -> list[str]:
    """The code of a notebook's cells, without its magics."""
    cells = json.loads(notebook.read_text("utf-8"))["cells"]
    codes = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    return [re.sub(r"^[%!].*$", "", code, flags=re.MULTILINE) for code in codes]


def lines_of(code: str) -> int:
    """Lines that are not blank."""
    return sum(bool(line.strip()) for line in code.splitlines())


def functions(code: str) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    return [node for node in ast.walk(ast.parse(code)) if isinstance(node, kinds)]


def core() -> dict[str, str]:
    """The library's files outside the separate rooms, by path."""
    paths = [path.relative_to(ROOT) for path in module_paths().values()]
    inside = [p for p in paths if p.parts[0] == LIBRARY and p.parts[1] not in SEPARATE]
    return {str(path): (ROOT / path).read_text("utf-8") for path in inside}


# --- imports -------------------------------------------------------------------------------------


def test_imports_point_down():
    assert upward(read_house()) == []


def test_an_import_is_found_wherever_it_stands():
    code = """
        import numpy, patchsae_lib.sae
        from patchsae_lib import latents, __version__
        def f():
            from patchsae_lib.world import World
            from patchsae_lib.pictures import sources, open_pictures
        if TYPE_CHECKING:
            from patchsae_lib import Study
    """.replace("\n        ", "\n")
    names = ["", ".sae", ".latents", ".world", ".pictures", ".pictures.sources"]
    modules = [f"patchsae_lib{name}" for name in names]
    assert set(imports_of(ast.parse(code), modules)) == set(modules)


def test_a_circle_on_one_floor_points_up_too():
    rooms = {name: Room(name, 1, imports={other}) for name, other in ("ab", "bc", "ca")}
    assert len(upward(rooms)) == 3
    rooms["c"].imports.clear()
    assert upward(rooms) == []


def imported_by(*arguments: str) -> set[str]:
    """The top-level packages that a Python process imports."""
    command = [sys.executable, "-X", "importtime", *arguments]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return {line.rpartition("|")[2].strip().partition(".")[0] for line in ran.stderr.splitlines()}


@pytest.mark.parametrize(
    "arguments", [("-c", "import patchsae_lib"), ("-m", "patchsae_lib", "--help")], ids="".join
)
def test_nothing_heavy_is_imported_before_it_is_needed(arguments):
    packages = imported_by(*arguments)
    assert "patchsae_lib" in packages or "-m" in arguments
    assert not packages & {"torch", "open_clip", "numpy", "pandas", "plotly", "sphinx"}


def test_the_exported_names_are_there_for_people_and_for_editors():
    for name in patchsae_lib.__all__:
        assert getattr(patchsae_lib, name) is not None
    assert set(patchsae_lib.__all__) <= set(dir(patchsae_lib))
    stub = ast.parse(Path(patchsae_lib.__file__).with_suffix(".pyi").read_text("utf-8"))
    imports = [node for node in stub.body if isinstance(node, ast.ImportFrom)]
    typed = {alias.asname for node in imports for alias in node.names}
    assert typed == set(patchsae_lib.__all__)
    with pytest.raises(AttributeError, match="no attribute 'Studi'"):
        _ = patchsae_lib.Studi


# --- sizes ---------------------------------------------------------------------------------------


def test_the_library_is_thin():
    # 5,000 for the paper's method and its measurements, and what measures the instruments: names
    # with their null (460), units of intervals and power (130), places, controls, partners (200);
    # batches that come from the device (60), what a build must know of a notebook (50), what
    # refuses or keeps what users bring (90); methods that compare two models (413), nested
    # dictionaries and cards of claims (47), a crosscoder (102); adaptations beside prompts (332),
    # a training that is watched (13)
    assert sum(len(code.splitlines()) for code in core().values()) <= 7_563


def test_functions_are_short():
    sizes = {
        f"{path}: {node.name}": node.end_lineno - node.lineno + 1
        for path, code in core().items()
        for node in functions(code)
    }
    assert [name for name, size in sizes.items() if size > 50] == []
    assert statistics.median(sizes.values()) <= 8
    longer = [name for name, size in sizes.items() if size > 22]
    assert len(longer) <= len(sizes) / 10, longer


def test_notebooks_are_short():
    cells = {(path.stem, i): code for path in NOTEBOOKS for i, code in enumerate(code_cells(path))}
    assert [name for name, code in cells.items() if lines_of(code) > 15] == []
    pages = Counter({path.stem: sum(map(lines_of, code_cells(path))) for path in NOTEBOOKS})
    assert max(pages.values()) <= 260, pages
    assert sum(len(functions(code)) for code in cells.values()) <= 6


# --- names ---------------------------------------------------------------------------------------


def names_in(code: str) -> Iterator[str]:
    """The variables, arguments and loop variables of a piece of code."""
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, ast.arg):
            yield node.arg
        elif isinstance(node, ast.ExceptHandler | ast.MatchAs | ast.MatchStar) and node.name:
            yield node.name


def test_no_variable_is_called_by_a_pronoun():
    paths = [*module_paths().values(), *NOTEBOOKS]
    called = {
        f"{path.relative_to(ROOT)}: {name}"
        for path in paths
        for code in (code_cells(path) if path in NOTEBOOKS else [path.read_text("utf-8")])
        for name in names_in(code)
        if PRONOUN.fullmatch(name)
    }
    assert sorted(called) == []


def test_pronouns_are_found_in_every_place_for_a_name():
    code = """
        def f(mine, *theirs):
            some: int = 0
            for _, other in (both := []):
                first, *rest = [it for it in other]
        lambda many: many
    """.replace("\n        ", "\n")
    found = set(filter(PRONOUN.fullmatch, names_in(code)))
    assert found == {"mine", "theirs", "some", "other", "both", "rest", "it", "many"}


# --- the picture ---------------------------------------------------------------------------------


@pytest.fixture
def rooms() -> dict[str, Room]:
    """All rooms of the plan, each of which imports the first room of every floor below."""
    found = {}
    for floor, (_, names) in enumerate(FLOORS):
        below = {names[0] for _, names in FLOORS[:floor]}
        for name in names:
            found[name] = Room(name, floor, f"What `{name}` holds & does.", 100, below)
    return found


@pytest.mark.parametrize(("kind", "columns"), [("wide", 6), ("narrow", 2)])
def test_the_picture_shows_every_room_and_every_import(rooms, kind, columns):
    svg = ElementTree.fromstring(house_page.svg(rooms, kind, 852, columns))
    title, description = svg[0], svg[1]
    assert svg.get("aria-labelledby") == f"{title.get('id')} {description.get('id')}"
    assert len(svg.findall("path")) == sum(len(room.imports) for room in rooms.values())
    assert len(svg.findall("rect")) == len(FLOORS)
    links = {link.find("text").text: link for link in svg.findall("a")}
    assert set(links) == set(rooms)
    for name, link in links.items():
        words = " ".join(text.text for text in link.findall("text"))
        assert words == f"{name} 100 lines What {name} holds & does."
        assert link.get("aria-label").startswith(f"{name}, 100 lines. What `{name}` holds & does.")
    assert links["sae"].get("href") == "api.html#module-patchsae_lib.sae"
    assert links["book"].get("href") == "#room-book"


def test_rooms_do_not_overlap_and_floors_are_in_order(rooms):
    boxes, _, height = house_page.plan(rooms, 340, 2)
    for a in boxes.values():
        assert a.x >= 0
        assert a.x + a.width <= 340
        assert a.y + a.height <= height
    for a, b in ((a, b) for a in rooms for b in rooms if a < b):
        upper, lower = sorted((boxes[a], boxes[b]), key=lambda box: (box.y, box.x))
        below = lower.y >= upper.y + upper.height
        assert below or lower.x >= upper.x + upper.width
        if rooms[a].floor != rooms[b].floor:
            assert (boxes[a].y < boxes[b].y) == (rooms[a].floor > rooms[b].floor)


def test_the_words_beside_the_picture_name_every_room(rooms):
    text = house_page.in_words(rooms)
    assert text.index("Floor 6") < text.index("Floor 0")
    for name, room in rooms.items():
        assert (
            f"{{#{house_page.anchor(room)}}}, 100 lines\n: What `{name}` holds & does. Imports "
            in text
        )


def test_every_promise_of_the_security_page_has_its_test() -> None:
    text = (ROOT / "book/security.md").read_text("utf-8")
    promised = re.findall(r"`(test_\w+\.py)::(test_\w+)`", text)
    assert len(promised) > 15
    tests = {file: (ROOT / "tests" / file).read_text("utf-8") for file, _ in promised}
    missing = [name for file, name in promised if f"\ndef {name}(" not in tests[file]]
    assert not missing
