"""Brings the book up to date: `make book`.

The notebooks in `notebooks/` are stored without outputs. A build executes those that have changed,
or that read what has changed, into `_build/notebooks/<profile>/` (`schedule.py`, `records.py`),
and builds the pages in `_build/staging/` if anything in them has changed. Only when both have
succeeded do they replace the last good book: the executed copies in `book/notebooks/` and the
pages in `_build/html/`.

Builds in one folder run one after the other. A build deletes only folders that hold its marker.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import distributions
from pathlib import Path

from execution import parameters_of
from folders import (
    NotebookError,
    mark,
    only_build,
    remove_folder,
    replace_folder,
    require_marked,
)
from patchsae_lib.artefacts import ROOT, config_hash, sha256, short, write_json
from patchsae_lib.parameters import absolute, profile_parser
from patchsae_lib.profiles import load_profile, with_pictures
from records import Parts, changed_parts
from schedule import JOBS, RECORDS, run_notebooks, say

NOTEBOOKS = ROOT / "notebooks"
PAGES = ROOT / "book"
BUILD = ROOT / "_build"
STAMP = ".made-of.json"  # what pages, or copies, in a folder were made of
FILES = {"sae", "given", "authors"}  # parameters that are paths,
KEYWORDS = ("", "shipped", "live")  # unless they are these
NO_RECORDS = shutil.ignore_patterns(RECORDS)


def main(argv: Sequence[str] | None = None) -> int:
    """Build the book and return the exit status: 1, and the reason on stderr, if that fails."""
    parser = profile_parser("book/build.py", "Bring notebooks and pages up to date.")
    parser.add_argument("--fresh", action="store_true", help="run every notebook")
    parser.add_argument(
        "--jobs", type=int, default=JOBS, help=f"notebooks that run side by side ({JOBS})"
    )
    parser.add_argument("--yes", action="store_true", help="fetch what is not here, if need be")
    given = parser.parse_args(argv)
    try:
        how = {"fresh": given.fresh, "n_jobs": max(1, given.jobs)}
        profile, parameters = from_here(given.profile, dict(given.parameters))
        if not given.yes:
            require_little_to_fetch(profile, parameters)
        index = make_book(profile, parameters, **how)
    except (ValueError, OSError, NotebookError) as error:
        print(error, file=sys.stderr)
        return 1
    print(f"the book: {short(index)}")
    return 0


def require_little_to_fetch(profile_name: str, parameters: Mapping[str, str]) -> None:
    """Raise `NotebookError`, with what would be fetched, if that is more than 100 MB."""
    profile = load_profile(profile_name)
    if images := parameters.get("images"):
        profile = with_pictures(profile, images)
    specs = profile.pictures.spec, profile.pictures.test, *profile.tasks
    if profile.model.name == "small" and not any(spec.startswith("hf:") for spec in specs):
        return  # without a look at what torch and open_clip know, which takes seconds
    from patchsae_lib.plan import needed, to_fetch

    if missing := to_fetch(profile):
        first = f"the profile {profile.name} would fetch"
        last = "make plan shows more; give YES=1 to fetch it"
        raise NotebookError("\n".join([first, *needed(missing), last]))


def from_here(profile: str, parameters: Mapping[str, str]) -> tuple[str, dict[str, str]]:
    """Return the profile, also one that is a parameter, and the other parameters, all with
    absolute paths: a notebook runs elsewhere than where the user stands. Raises `ValueError` for
    a path where nothing is.

    >>> from_here("world", {"profile": "smoke", "sae": "shipped", "images": "folder:/photos"})
    ('smoke', {'sae': 'shipped', 'images': 'folder:/photos'})
    """
    named = {name: absolute(text) for name, text in {"profile": profile, **parameters}.items()}
    for name in FILES & named.keys():  # whatever their ending is
        if named[name] not in KEYWORDS and "://" not in named[name]:
            named[name] = os.path.abspath(os.path.expanduser(named[name]))
            if not os.path.exists(named[name]):  # said now, and not by a notebook in ten minutes
                raise ValueError(f"-p {name}: there is no {named[name]}")
    return named.pop("profile"), named


def make_book(
    profile_name: str,
    given: Mapping[str, str],
    build: Path | None = None,
    fresh: bool = False,
    n_jobs: int = JOBS,
) -> Path:
    """Run the notebooks and build the pages that are not up to date, or all if `fresh`; put them
    in place and return the path of the index.

    With a `build` folder of the caller's, the executed copies in `book/notebooks/` stay as they
    are. Raises `ValueError` for a profile or parameter that is not known, before anything runs,
    and `NotebookError` for a notebook or page that fails.
    """
    folder, copies = build or BUILD, [] if build else [PAGES / "notebooks"]
    html, staging, profile = folder / "html", folder / "staging", load_profile(profile_name)
    runs = parameters_of(sorted(NOTEBOOKS.glob("*.ipynb")), {"profile": profile_name, **given})
    with only_build(folder):
        executed = folder / "notebooks" / profile.name
        require_marked(executed, staging, html, *copies)  # before an hour's work
        run_notebooks(runs, executed, profile, fresh, n_jobs)
        made_of = pages_made_of(executed)
        if why := "asked to" if fresh else outdated(made_of, html, *copies):
            say(f"pages: built, {why}")
            built = build_pages(executed, staging, made_of)
            for place in copies:
                copy = shutil.copytree(executed, staging / "executed", ignore=NO_RECORDS)
                write_json(copy / STAMP, made_of)
                replace_folder(copy, place)
            replace_folder(built, html)
            remove_folder(staging)
        else:
            say("pages: kept")
    return html / "index.html"


# --- pages ---------------------------------------------------------------------------------------


def pages_made_of(executed: Path) -> Parts:
    """Return all that decides the pages: texts, executed notebooks, and the code that is drawn,
    documented or used to build them."""
    library = {p for name in ("patchsae_lib", "recipes") for p in (ROOT / name).iterdir()}
    packages = {x.metadata["Name"]: x.version for x in distributions()}
    return {
        "notebooks": tree_hashes(set(executed.iterdir())),
        "text": tree_hashes({*PAGES.iterdir(), ROOT / "_config.yml"} - {PAGES / "notebooks"}),
        "data": tree_hashes((ROOT / "data").iterdir()),
        "code": tree_hashes(library),
        "packages": {"all": config_hash(packages)},
    }


def tree_hashes(paths: Iterable[Path]) -> dict[str, str]:
    """Return a hash of the files in each path that is not hidden, by its name."""
    hashes = {}
    for path in sorted(paths):
        if not path.name.startswith((".", "__pycache__")):
            files = (x for x in (path, *path.rglob("*")) if x.is_file() and x.suffix != ".pyc")
            hashes[path.name] = config_hash(
                {str(x.relative_to(path)): sha256(x) for x in sorted(files)}
            )
    return hashes


def outdated(made_of: Parts, *places: Path) -> str:
    """Say why the folders are not made of just this; "" if all are."""
    for place in places:
        try:
            before = json.loads((place / STAMP).read_text("utf-8"))
        except (OSError, ValueError):
            return f"{short(place)} is not there"
        if why := changed_parts(before, made_of):
            return why
    return ""


def build_pages(executed: Path, staging: Path, made_of: Parts) -> Path:
    """Build the HTML of `book/` with these executed notebooks, in `staging`; return its folder,
    stamped with what the pages were made of.

    Every warning is an error: a `NotebookError` with the warnings as text.
    """
    remove_folder(staging)
    mark(staging)
    pages = staging / "book"
    shutil.copytree(PAGES, pages, ignore=shutil.ignore_patterns("notebooks", "_ext", "*.py*"))
    shutil.copytree(executed, pages / "notebooks", ignore=NO_RECORDS)
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
    write_json(html / STAMP, made_of)
    return html


def complaints(output: str) -> str:
    """Return the warnings and errors in Sphinx's output, once each, or all of it if it has none.

    >>> complaints("reading\\n\\x1b[91ma.md:1: WARNING: b\\x1b[0m\\na.md:1: WARNING: b")
    'a.md:1: WARNING: b'
    """
    output = re.sub(r"\x1b\[[\d;]*m", "", output)  # colours
    found = re.findall("^.*(?:WARNING|ERROR|CRITICAL|rror:).*$", output, flags=re.MULTILINE)
    return "\n".join(dict.fromkeys(found)) or output


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
