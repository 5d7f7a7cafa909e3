"""The runner of the book: failures are one clear line; only a build's own folders are deleted."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

import build as runner
from build import build_pages, main, make_book
from execution import execute, tidy
from folders import MARKER, NotebookError, mark, only_build, remove_folder, replace_folder
from patchsae_lib.artefacts import ROOT


def write(path: Path, *codes: str, parameters='profile = "smoke"\nn = 1') -> Path:
    """A notebook of these cells."""
    first = new_code_cell(parameters, id="parameters", metadata={"tags": ["parameters"]})
    cells = [new_code_cell(code, id=f"cell-{i}") for i, code in enumerate(codes)]
    title = new_markdown_cell("# Test", id="title")
    nbformat.write(new_notebook(cells=[title, first, *cells]), path)
    return path


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A folder in place of the repository, without notebooks."""
    monkeypatch.setattr(runner, "NOTEBOOKS", tmp_path)
    monkeypatch.setattr(runner, "BUILD", tmp_path / "_build")
    monkeypatch.setattr(runner, "PAGES", tmp_path / "book")
    monkeypatch.setenv("PATCHSAE_RUNS", str(tmp_path / "runs"))
    return tmp_path


# --- notebooks -----------------------------------------------------------------------------------


def test_an_unknown_parameter_is_an_error_before_anything_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(runner, "BUILD", tmp_path)
    assert main(["--profile", "smoke", "-p", "imges", "folder:x"]) == 1
    line = capsys.readouterr().err
    assert line.startswith("unknown parameter 'imges'; known are ")
    assert {"images", "profile"} <= set(line.partition("known are ")[2].strip().split(", "))
    assert line.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--profile", "wrld"], "no profile 'wrld'"),
        (["-p", "profile", "5"], "no profile '5'"),
        (["--profile", "mine.toml"], "/mine.toml': give one of authors, clip, "),
        (["-p", "n", "two"], "parameter n: 'two' is not of type int"),
    ],
)
def test_a_wrong_value_is_one_clear_line(checkout, capsys, arguments, message):
    write(checkout / "1_a.ipynb")
    assert main(arguments) == 1
    line = capsys.readouterr().err
    assert message in line
    assert line.count("\n") == 1


def test_a_notebook_is_told_where_the_users_files_are(checkout, monkeypatch, tmp_path_factory):
    """It runs in the clone, and the user may stand elsewhere."""
    stands, given = tmp_path_factory.mktemp("user"), {}
    (stands / "mine.toml").write_text('base = "smoke"\n[pictures]\nspec = "folder:photos"\n')
    write(checkout / "1_a.ipynb", parameters='profile = "world"\nimages = ""')

    def run(runs, executed, profile, *_):
        given.update(profile=profile, **{source.stem: kept for source, kept in runs.items()})
        raise NotebookError("seen enough")

    monkeypatch.setattr(runner, "run_notebooks", run)
    monkeypatch.chdir(stands)
    assert main(["--profile", "mine.toml", "-p", "images", "folder:birds"]) == 1
    assert given["1_a"] == {"profile": f"{stands}/mine.toml", "images": f"folder:{stands}/birds"}
    assert given["profile"].pictures.spec == f"folder:{stands}/photos"


def test_papermill_alone_refuses_an_unknown_parameter_too(tmp_path):
    code = "from patchsae_lib.parameters import injected\ninjected(In)"
    source = write(tmp_path / "a.ipynb", code)
    with pytest.raises(NotebookError, match=r"unknown parameter 'm'; known are n, profile"):
        execute(source, {"profile": "smoke", "m": 2}, tmp_path / "out.ipynb")


def test_a_failing_notebook_is_one_line_and_leaves_the_last_book_alone(checkout, capsys):
    (checkout / "book").mkdir()
    mark(checkout / "_build/html")
    (checkout / "_build/html/index.html").write_text("the last good book")
    write(checkout / "1_bad.ipynb", "x = n", "raise RuntimeError('first line\\n  second line')")
    write(checkout / "2_never.ipynb", "print('not reached')")
    assert main(["--profile", "smoke", "-p", "n", "2", "--jobs", "1"]) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.endswith("1_bad.ipynb, code cell 3: RuntimeError: first line second line")
    assert (checkout / "_build/html/index.html").read_text() == "the last good book"
    assert not (checkout / "_build/notebooks/smoke/2_never.ipynb").exists()


NOISY = """\
import sys, uuid, warnings
from pathlib import Path
import pandas as pd
from tqdm import tqdm
for _ in tqdm(range(3)): pass
warnings.warn("seen on the terminal")
print(object(), Path.cwd(), uuid.uuid4())
pd.DataFrame({"a": [1]}).style.format("{:.1f}")"""


def test_two_runs_leave_the_same_bytes_and_stderr_goes_to_the_terminal(tmp_path, capfd):
    source = write(tmp_path / "a.ipynb", NOISY)
    one, two = tmp_path / "one.ipynb", tmp_path / "two.ipynb"
    for target in (one, two):
        execute(source, {"n": 3}, target)
    assert "seen on the terminal" in capfd.readouterr().err
    text = one.read_text("utf-8")
    assert text == two.read_text("utf-8")
    assert "n = 3" in text
    assert str(ROOT) not in text
    assert "seen on the terminal" not in json.dumps(json.loads(text)["cells"][-1]["outputs"])


def test_tidy_takes_out_what_differs_from_run_to_run():
    view = {"application/vnd.jupyter.widget-view+json": {"model_id": "x"}, "text/plain": "W()"}
    cell = new_code_cell("1", outputs=[new_output("display_data", data=view)])
    cell.metadata["papermill"] = {"duration": 1}
    cell.outputs.append(new_output("stream", name="stderr", text="100%"))
    cell.outputs.append(new_output("stream", text=f"{ROOT}/runs/world <f at 0x7f00>"))
    notebook = tidy(new_notebook(cells=[cell], metadata={"widgets": {}, "papermill": {}}))
    assert notebook.metadata == {}
    assert cell.metadata == {}
    assert [o.get("text", o.get("data")) for o in cell.outputs] == [
        {"text/plain": "W()"},
        "runs/world <f>",
    ]


# --- pages ---------------------------------------------------------------------------------------


def test_the_pages_of_one_run_are_the_same_bytes_twice(build, tmp_path):
    executed = build / "notebooks/smoke"
    again = build_pages(executed, tmp_path / "staging", runner.pages_made_of(executed))
    names = sorted(p.relative_to(again) for p in again.rglob("*") if p.is_file())
    once = build / "html"
    assert names == sorted(p.relative_to(once) for p in once.rglob("*") if p.is_file())
    assert [n for n in names if (once / n).read_bytes() != (again / n).read_bytes()] == []


def test_a_warning_of_the_pages_is_an_error_with_its_text(checkout):
    pages = checkout / "book"
    shutil.copytree(ROOT / "book/_static", pages / "_static")
    (pages / "references.bib").touch()
    (pages / "_toc.yml").write_text("format: jb-book\nroot: intro\n")
    (pages / "intro.md").write_text("# A page\n\n[gone](nowhere.md)\n")
    mark(checkout / "executed")
    with pytest.raises(NotebookError, match=r"book/intro.md:3: WARNING: .*nowhere.md"):
        build_pages(checkout / "executed", checkout / "staging", {})


def test_pages_are_built_again_only_if_something_in_them_has_changed(
    checkout, monkeypatch, capsys
):
    """With Sphinx left out: what is asked of it, and what becomes of its pages."""

    def pretend(executed, staging, made_of):
        (staging / "html").mkdir(parents=True)
        mark(staging)
        mark(staging / "html")
        (staging / "html/index.html").write_text((checkout / "book/intro.md").read_text())
        runner.write_json(staging / "html" / runner.STAMP, made_of)
        return staging / "html"

    def book(**how):
        index = make_book("smoke", {}, **how)
        return index.read_text(), capsys.readouterr().err.splitlines()[-1]

    monkeypatch.setattr(runner, "build_pages", pretend)
    monkeypatch.setattr(runner, "run_notebooks", lambda runs, executed, *_: mark(executed))
    (checkout / "book").mkdir()
    write(checkout / "1_a.ipynb")
    (checkout / "book/intro.md").write_text("a page")
    assert book() == ("a page", f"pages: built, {checkout}/_build/html is not there")
    assert book() == ("a page", "pages: kept")
    (checkout / "book/intro.md").write_text("a better page")
    assert book() == ("a better page", "pages: built, text changed: intro.md")
    (checkout / "_build/notebooks/smoke/1_a.ipynb").write_text("a notebook")
    assert book()[1] == "pages: built, notebooks changed: 1_a.ipynb"
    shutil.rmtree(checkout / "book/notebooks")
    assert book()[1] == f"pages: built, {checkout}/book/notebooks is not there"
    assert (checkout / "book/notebooks/1_a.ipynb").exists()
    assert book(fresh=True)[1] == "pages: built, asked to"


# --- folders -------------------------------------------------------------------------------------


def test_a_second_build_says_so_and_waits(tmp_path):
    code = (
        "import sys; from pathlib import Path; from build import only_build\n"
        "with only_build(Path(sys.argv[1])): print('built')"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "_build")]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with only_build(tmp_path / "_build"):
        second = subprocess.Popen(command, cwd=ROOT / "book", **pipes)
        assert "another build is running" in second.stderr.readline()
        assert second.poll() is None
    output, _ = second.communicate(timeout=20)
    assert output == "built\n"


def test_a_build_that_cannot_wait_is_one_clear_line(checkout, capsys):
    write(checkout / "1_a.ipynb")
    (checkout / "_build").write_text("no folder")
    assert main(["--profile", "smoke"]) == 1
    assert capsys.readouterr().err.startswith(f"cannot lock {checkout}/_build: ")


@pytest.mark.parametrize("place", ["_build/html", "_build/notebooks/smoke", "book/notebooks"])
def test_a_folder_that_no_build_has_made_is_not_deleted(checkout, capsys, place):
    write(checkout / "1_a.ipynb", "raise RuntimeError('not reached')")
    (checkout / place).mkdir(parents=True)
    (checkout / place / "thesis.tex").write_text("two years of work")
    assert main(["--profile", "smoke"]) == 1
    line = capsys.readouterr().err
    assert f"{checkout / place} is in the way" in line
    assert "move or delete it" in line
    assert (checkout / place / "thesis.tex").read_text() == "two years of work"


def test_a_marked_folder_is_deleted_and_what_it_links_to_is_not(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data/kept").touch()
    mark(tmp_path / "staging")
    (tmp_path / "staging/data").symlink_to(tmp_path / "data")
    (tmp_path / "staging/pages").mkdir()
    remove_folder(tmp_path / "staging")
    remove_folder(tmp_path / "staging")  # there is nothing to delete
    assert [p.name for p in tmp_path.iterdir()] == ["data"]
    assert (tmp_path / "data/kept").exists()


def test_a_new_folder_takes_the_place_of_the_old_one(tmp_path):
    for name in ("html", "new"):
        mark(tmp_path / name)
        (tmp_path / name / name).touch()
    replace_folder(tmp_path / "new", tmp_path / "html")
    assert [p.name for p in tmp_path.iterdir()] == ["html"]
    assert sorted(p.name for p in (tmp_path / "html").iterdir()) == [MARKER, "new"]
