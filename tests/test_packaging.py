"""What is installed: declared imports, and a library that finds what ships beside or inside it."""

import ast
import os
import re
import shutil
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions

from patchsae_lib.artefacts import DATA, PACKAGE, ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
HELD_BY_OTHERS = {"ipywidgets"}  # for widgets in a notebook


def plain(requirement: str) -> str:
    name = re.match(r"[\w.-]+", requirement)[0]
    return re.sub(r"[-_.]+", "-", name).lower()


def imported_packages() -> set[str]:
    """The distributions that the library's modules import, wherever the import stands."""
    nodes = (n for p in PACKAGE.rglob("*.py") for n in ast.walk(ast.parse(p.read_text("utf-8"))))
    names = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names.add(node.module)
    roots = {name.partition(".")[0] for name in names} - sys.stdlib_module_names
    known = packages_distributions()
    return {plain(known.get(root, [root])[0]) for root in roots - {"patchsae_lib"}}


def test_what_the_library_imports_is_declared_and_nothing_else():
    needed = set(map(plain, PROJECT["project"]["dependencies"]))
    optional = set(map(plain, PROJECT["project"]["optional-dependencies"]["hf"]))
    assert imported_packages() - optional == needed - HELD_BY_OTHERS


def test_without_the_repository_the_library_finds_what_ships_and_writes_where_one_stands(tmp_path):
    included = PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["force-include"]
    installed, stands = tmp_path / "site", tmp_path / "here"
    shutil.copytree(PACKAGE, installed / "patchsae_lib")
    for source, target in included.items():
        shutil.copytree(ROOT / source, installed / target)
    stands.mkdir()
    code = (
        "from patchsae_lib import Study\n"
        "from patchsae_lib.artefacts import DATA, run_dir\n"
        "print(DATA, run_dir('world'), Study('world').shipped.d_sae)"
    )
    environment = os.environ | {"PYTHONPATH": str(installed)}
    environment.pop("PATCHSAE_RUNS", None)
    command = [sys.executable, "-c", code]
    ran = subprocess.run(command, cwd=stands, env=environment, capture_output=True, text=True)
    expected = installed / "patchsae_lib" / "data", stands / "runs" / "world", 3072
    assert ran.stdout.split() == list(map(str, expected)), ran.stderr
    assert DATA == ROOT / "data"
