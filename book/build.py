"""Runs the notebooks in order and builds the book from their outputs: `make book`.

The notebooks in `notebooks/` are stored without outputs. A build executes them with papermill into
`_build/notebooks/<profile>/` and builds the pages in `_build/staging/`. Only when both have
succeeded do they replace the last good book: the executed copies in `book/notebooks/` and the
pages in `_build/html/`.

Builds in one folder run one after the other. A build deletes only folders that hold its marker.
"""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any
from unittest import mock

from filelock import FileLock, Timeout

from patchsae_lib.artefacts import ROOT, run_dir, short, write_json
from patchsae_lib.parameters import assignments, check_names, profile_parser
from patchsae_lib.profiles import Profile, load_profile

NOTEBOOKS = ROOT / "notebooks"
PAGES = ROOT / "book"
BUILD = ROOT / "_build"
MARKER = ".patchsae-build"

# What a kernel needs so that two runs leave the same bytes behind: figures as plain data instead
# of scripts with random ids, sets in one order.
KERNEL_ENVIRONMENT = {
    "PLOTLY_RENDERER": "plotly_mimetype",
    "PYTHONHASHSEED": "0",
    "PYDEVD_DISABLE_FILE_VALIDATION": "1",
}
RANDOM = re.compile(
    r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}"  # uuid4
    r"|(?<=T_)[0-9a-f]{5}(?=[_\"' {])"  # a table styled by pandas
)


class NotebookError(Exception):
    """A notebook or the book cannot be built; the message says where and why."""


def main(argv: Sequence[str] | None = None) -> int:
    """Build the book and return the exit status: 1, and the reason on stderr, if that fails."""
    parser = profile_parser("book/build.py", "Run the notebooks and build the book.")
    given = parser.parse_args(argv)
    try:
        index = make_book(given.profile, dict(given.parameters))
    except (ValueError, NotebookError) as error:
        print(error, file=sys.stderr)
        return 1
    print(f"the book: {short(index)}")
    return 0


def make_book(profile_name: str, given: Mapping[str, str], build: Path | None = None) -> Path:
    """Run every notebook, build the pages and put them in place; return the path of their index.

    With a `build` folder of the caller's, the executed copies in `book/notebooks/` stay as they
    are. Raises `ValueError` for a profile or parameter that is not known, before anything runs,
    and `NotebookError` for a notebook or page that fails.
    """
    folder, copies = build or BUILD, [] if build else [PAGES / "notebooks"]
    profile = load_profile(profile_name)
    runs = parameters_of(sorted(NOTEBOOKS.glob("*.ipynb")), {"profile": profile_name, **given})
    with only_build(folder):
        require_marked(folder / "staging", folder / "html", *copies)  # before an hour's work
        executed = run_notebooks(runs, folder / "notebooks" / profile.name, profile)
        print("pages ...", file=sys.stderr, flush=True)
        html = build_pages(executed, folder / "staging")
        for place in copies:
            copy = shutil.copytree(executed, folder / "staging" / "executed")
            replace_folder(copy, place)
        replace_folder(html, folder / "html")
        remove_folder(folder / "staging")
    return folder / "html" / "index.html"


# --- notebooks -----------------------------------------------------------------------------------


def parameters_of(sources: Iterable[Path], given: Mapping[str, str]) -> dict[Path, dict[str, Any]]:
    """Return, for each notebook, those of the `given` parameters that it has and that differ from
    its defaults, converted to the type of the default.

    Raises `ValueError` for a parameter that no notebook has.
    """
    defaults = {source: read_parameters(source) for source in sources}
    if not defaults:
        raise NotebookError("there are no notebooks to run")
    check_names(given, {name for known in defaults.values() for name in known})
    runs = {}
    for source, known in defaults.items():
        values = {k: typed(v, known[k], k) for k, v in given.items() if k in known}
        runs[source] = {k: v for k, v in values.items() if v != known[k]}
    return runs


def run_notebooks(runs: Mapping[Path, Mapping[str, Any]], folder: Path, profile: Profile) -> Path:
    """Execute notebooks with their parameters, one after the other, into `folder`; return it.

    The claims, the explorer's files and the profile of the run are put beside them. Raises
    `NotebookError` at the first failure.
    """
    remove_folder(folder)
    mark(folder)
    claims = run_dir(profile.name) / "claims.json"
    claims.unlink(missing_ok=True)  # every claim is measured again
    for source, parameters in runs.items():
        start = time.monotonic()
        print(f"{source.stem} ...", file=sys.stderr, flush=True)
        execute(source, parameters, folder / source.name)
        print(f"{source.stem}: {time.monotonic() - start:.0f} s", file=sys.stderr, flush=True)
    if not claims.is_file():
        write_json(claims, [])
    shutil.copy(claims, folder / "claims.json")
    if (explorer := run_dir(profile.name) / "explorer").is_dir():
        shutil.copytree(explorer, folder / "explorer")
    write_json(folder / "profile.json", asdict(profile))
    return folder


def execute(source: Path, parameters: Mapping[str, Any], target: Path) -> None:
    """Run one notebook from the root of the repository and write it, tidied, to `target`.

    What a cell writes to stderr (progress bars, warnings) goes to the terminal and is not kept.
    """
    import nbformat
    import papermill
    from nbclient.exceptions import DeadKernelError
    from papermill.exceptions import PapermillExecutionError

    interactive = sys.stderr.isatty()
    environment = KERNEL_ENVIRONMENT | ({} if interactive else {"TQDM_DISABLE": "1"})
    try:
        with mock.patch.dict(os.environ, environment):
            notebook = papermill.execute_notebook(
                source,
                target,
                parameters=dict(parameters),
                kernel_name="python3",
                language="python",
                cwd=ROOT,
                stderr_file=sys.stderr,
                shutdown_kernel="immediate",  # torch takes two seconds to leave
                progress_bar={"desc": source.stem, "leave": False} if interactive else False,
            )
    except PapermillExecutionError as error:
        message = f"{error.ename}: {error.evalue}".replace(f"{ROOT}{os.sep}", "")
        cell = name_cell(source, error.source)
        raise NotebookError(f"{cell}: {' '.join(message.split())}") from None
    except DeadKernelError:
        raise NotebookError(f"{short(source)}: the kernel died, perhaps of memory") from None
    nbformat.write(tidy(notebook), target)


def read_parameters(source: Path) -> dict[str, Any]:
    """Return the names and defaults in the cell tagged `parameters`, the first code cell."""
    codes = [cell for cell in read_cells(source) if cell["cell_type"] == "code"]
    if not codes or "parameters" not in codes[0]["metadata"].get("tags", []):
        raise NotebookError(f"{short(source)}: its first code cell is not tagged 'parameters'")
    values = assignments("".join(codes[0]["source"]))
    return {name: ast.literal_eval(value) for name, value in values.items()}


def read_cells(source: Path) -> list[dict[str, Any]]:
    """Return the cells of a notebook file."""
    try:
        return json.loads(source.read_text(encoding="utf-8"))["cells"]
    except (ValueError, KeyError):
        raise NotebookError(f"{short(source)} is not a notebook") from None


def name_cell(source: Path, code: str) -> str:
    """Name a cell of a notebook by its number among the code cells (the first is 1).

    The cell is found by its code, because papermill's index counts a cell it has added.
    """
    codes = ["".join(c["source"]) for c in read_cells(source) if c["cell_type"] == "code"]
    number = codes.index(code) + 1 if code in codes else "with the parameters"
    return f"{short(source)}, code cell {number}"


# --- outputs that do not change from run to run --------------------------------------------------


def tidy(notebook: Any) -> Any:
    """Remove what differs from run to run: times, widget state, stderr, random ids, absolute
    paths, memory addresses. Changes the notebook in place and returns it."""
    for name in ("papermill", "widgets"):
        notebook.metadata.pop(name, None)
    for cell in notebook.cells:
        for name in ("papermill", "execution"):
            cell.metadata.pop(name, None)
        if "injected-parameters" in cell.metadata.get("tags", []):
            cell["id"] = "injected-parameters"
        if cell.cell_type == "code":
            cell.outputs = [o for o in cell.outputs if o.get("name") != "stderr"]
            for output in cell.outputs:
                output.get("data", {}).pop("application/vnd.jupyter.widget-view+json", None)
    ids: dict[str, str] = {}
    for output in (output for cell in notebook.cells for output in cell.get("outputs", [])):
        if "text" in output:
            output["text"] = stable("".join(output["text"]), ids)
        for kind, content in output.get("data", {}).items():
            if kind.startswith("text/"):
                output["data"][kind] = stable("".join(content), ids)
    return notebook


def stable(text: str, ids: dict[str, str]) -> str:
    """Remove this machine's paths and addresses from a text, and number its random ids in order.

    >>> stable("<f at 0x7f10> T_0a1b2_row0 T_0a1b2_row1", {})
    '<f> T_00000_row0 T_00000_row1'
    """
    text = text.replace(f"{ROOT}{os.sep}", "").replace(str(ROOT), ".")
    text = re.sub(r" at 0x[0-9a-f]+", "", text)
    return RANDOM.sub(lambda found: ids.setdefault(found[0], f"{len(ids):05d}"), text)


# --- pages ---------------------------------------------------------------------------------------


def build_pages(executed: Path, staging: Path) -> Path:
    """Build the HTML of `book/` with these executed notebooks, in `staging`; return its folder.

    Every warning is an error: a `NotebookError` with the warnings as text.
    """
    remove_folder(staging)
    mark(staging)
    pages = staging / "book"
    shutil.copytree(PAGES, pages, ignore=shutil.ignore_patterns("notebooks", "_ext", "*.py*"))
    shutil.copytree(executed, pages / "notebooks")
    (staging / "data").symlink_to(ROOT / "data")  # pages include ../data/...
    command = [str(Path(sys.executable).with_name("jupyter-book")), "build", str(pages)]
    command += ["--config", str(ROOT / "_config.yml"), "--path-output", str(staging)]
    command += ["--all", "-W", "-n", "--keep-going", "-q"]
    environment = os.environ | {"PYTHONHASHSEED": "0"}
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)
    html = staging / "_build" / "html"
    if ran.returncode or not (html / "index.html").is_file():
        output = (ran.stdout + ran.stderr).replace(str(pages), PAGES.name)
        raise NotebookError(f"the pages do not build:\n{complaints(output)}")
    mark(html)
    return html


def typed(text: Any, default: Any, name: str) -> Any:
    """Convert a parameter from the command line to the type of its default.

    Raises `ValueError` for text that is not of that type.

    >>> typed("3", 1, "n"), typed("false", True, "draw"), typed("folder:x", "", "images")
    (3, False, 'folder:x')
    """
    if not isinstance(text, str) or isinstance(default, str):
        return text
    try:
        value = ast.literal_eval(text.capitalize() if isinstance(default, bool) else text)
        return type(default)(value) if isinstance(default, (int, float)) else value
    except (ValueError, SyntaxError, TypeError):
        kind = type(default).__name__
        raise ValueError(f"parameter {name}: {text!r} is not of type {kind}") from None


def complaints(output: str) -> str:
    """Return the warnings and errors in Sphinx's output, once each, or all of it if it has none.

    >>> complaints("reading\\n\\x1b[91ma.md:1: WARNING: b\\x1b[0m\\na.md:1: WARNING: b")
    'a.md:1: WARNING: b'
    """
    output = re.sub(r"\x1b\[[\d;]*m", "", output)  # colours
    found = re.findall("^.*(?:WARNING|ERROR|CRITICAL|rror:).*$", output, flags=re.MULTILINE)
    return "\n".join(dict.fromkeys(found)) or output


# --- folders -------------------------------------------------------------------------------------


@contextmanager
def only_build(folder: Path) -> Iterator[None]:
    """Hold the lock of a build folder; if another build holds it, say so and wait.

    Raises `NotebookError` where there is nothing to lock, e.g. on a disk that is read-only.
    """
    lock = FileLock(folder / ".lock")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(blocking=False)
        except Timeout:
            waiting = f"another build is running in {short(folder)}: waiting for it to end"
            print(waiting, file=sys.stderr, flush=True)
            lock.acquire()
    except OSError as error:
        raise NotebookError(f"cannot lock {short(folder)}: {error}") from None
    try:
        yield
    finally:
        lock.release()


def mark(folder: Path) -> None:
    """Create a folder if it does not exist, and mark it as one that a build may delete."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MARKER).write_text("Made by book/build.py, which deletes this folder.\n")


def require_marked(*folders: Path) -> None:
    """Raise `NotebookError` for the first of these folders that exists without the marker."""
    for folder in folders:
        if folder.is_symlink() or (folder.exists() and not (folder / MARKER).is_file()):
            raise NotebookError(
                f"{short(folder)} is in the way, and it was not made by this program (it holds no "
                f"{MARKER}): move or delete it, then build again"
            )


def remove_folder(folder: Path) -> None:
    """Delete a folder that a build has marked. Raises `NotebookError` for any other folder."""
    require_marked(folder)
    if not folder.exists():
        return
    for entry in folder.iterdir():  # the marker goes last: an interrupted deletion can be repeated
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        elif entry.name != MARKER:
            entry.unlink()
    shutil.rmtree(folder)


def replace_folder(new: Path, place: Path) -> None:
    """Put the folder `new` at `place`, and keep the old one until the last moment."""
    old = place.with_name(f"{place.name}.old")
    require_marked(place)
    remove_folder(old)
    if place.exists():
        place.rename(old)
    new.rename(place)
    remove_folder(old)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
