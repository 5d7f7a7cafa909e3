"""The notebooks run, small, as `make book` runs them; a failure never looks like a success."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import nbformat
import pytest
import torch
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from PIL import Image

from patchsae_lib import notebooks
from patchsae_lib.__main__ import main
from patchsae_lib.artefacts import ROOT
from patchsae_lib.clip import load_clip, predict
from patchsae_lib.images import open_pictures
from patchsae_lib.notebooks import NotebookError, build_pages, execute, read_parameters, tidy
from patchsae_lib.profiles import ModelConfig, load_profile, with_pictures
from patchsae_lib.world import CLASSES, World

SOURCES = sorted((ROOT / "notebooks").glob("*.ipynb"))
BY_NAME = pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.stem)


def write(path: Path, *codes: str, parameters='profile = "smoke"\nn = 1') -> Path:
    """A notebook of these cells."""
    first = new_code_cell(parameters, id="parameters", metadata={"tags": ["parameters"]})
    rest = [new_code_cell(code, id=f"cell-{i}") for i, code in enumerate(codes)]
    nbformat.write(
        new_notebook(cells=[new_markdown_cell("# Test", id="title"), first, *rest]), path
    )
    return path


@BY_NAME
def test_is_stored_without_outputs(source):
    cells = json.loads(source.read_text("utf-8"))["cells"]
    assert len({cell["id"] for cell in cells}) == len(cells)
    for cell in cells:
        assert not cell.get("outputs")
        assert cell.get("execution_count") is None


@BY_NAME
def test_begins_with_its_parameters(source):
    assert {"profile", "images"} <= set(read_parameters(source))
    assert read_parameters(source)["profile"] == "world"


@BY_NAME
def test_runs_in_the_smallest_profile(build, source):
    text = (build / "notebooks/smoke" / source.name).read_text("utf-8")
    assert str(ROOT) not in text
    notebook = json.loads(text)
    assert {"papermill", "widgets"}.isdisjoint(notebook["metadata"])
    codes = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert all(cell["execution_count"] for cell in codes)
    for output in (output for cell in codes for output in cell["outputs"]):
        assert output["output_type"] != "error"
        assert output.get("name") != "stderr"


def test_the_scoreboard_is_made_of_the_claims_of_this_run(build):
    claims = json.loads((build / "notebooks/smoke/claims.json").read_text("utf-8"))
    page = (build / "html/scoreboard.html").read_text("utf-8")
    assert claims
    assert f"{len(claims)} claim" in page
    assert page.count('class="verdict') == len(claims)


def test_an_unknown_parameter_is_an_error_before_anything_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(notebooks, "BUILD", tmp_path)
    assert main(["book", "--profile", "smoke", "-p", "imges", "folder:x"]) == 1
    said = capsys.readouterr().err
    assert said.startswith("unknown parameter 'imges'; known are ")
    assert {"images", "profile"} <= set(said.partition("known are ")[2].strip().split(", "))
    assert said.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_an_unknown_profile_is_one_clear_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(notebooks, "BUILD", tmp_path)
    assert main(["book", "--profile", "wrld"]) == 1
    said = capsys.readouterr().err
    assert "no profile 'wrld'" in said
    assert said.count("\n") == 1


def test_papermill_alone_refuses_an_unknown_parameter_too(tmp_path):
    code = "from patchsae_lib.notebooks import begin\nbegin(profile)"
    source = write(tmp_path / "a.ipynb", code)
    with pytest.raises(NotebookError, match=r"unknown parameter 'm'; known are n, profile"):
        execute(source, {"profile": "smoke", "m": 2}, tmp_path / "out.ipynb")


def test_a_failing_notebook_is_one_line_and_leaves_the_last_book_alone(
    tmp_path, monkeypatch, capsys
):
    build = tmp_path / "_build"
    (build / "html").mkdir(parents=True)
    (build / "html/index.html").write_text("the last good book")
    write(tmp_path / "1_bad.ipynb", "x = n", "raise RuntimeError('first line\\n  second line')")
    write(tmp_path / "2_never.ipynb", "print('not reached')")
    monkeypatch.setattr(notebooks, "NOTEBOOKS", tmp_path)
    monkeypatch.setattr(notebooks, "BUILD", build)
    monkeypatch.setenv("PATCHSAE_RUNS", str(tmp_path / "runs"))
    assert main(["book", "--profile", "smoke", "-p", "n", "2"]) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.endswith("1_bad.ipynb, code cell 3: RuntimeError: first line second line")
    assert (build / "html/index.html").read_text() == "the last good book"
    assert not (build / "notebooks/smoke/2_never.ipynb").exists()


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


def test_the_pages_of_one_run_are_the_same_bytes_twice(build, tmp_path):
    again = build_pages(build / "notebooks/smoke", tmp_path)
    names = sorted(p.relative_to(again) for p in again.rglob("*") if p.is_file())
    once = build / "html"
    assert names == sorted(p.relative_to(once) for p in once.rglob("*") if p.is_file())
    assert [n for n in names if (once / n).read_bytes() != (again / n).read_bytes()] == []


def test_a_warning_of_the_pages_is_an_error_with_its_text(build, tmp_path, monkeypatch):
    pages = tmp_path / "book"
    shutil.copytree(ROOT / "book/_static", pages / "_static")
    (pages / "references.bib").touch()
    (pages / "_toc.yml").write_text("format: jb-book\nroot: intro\n")
    (pages / "intro.md").write_text("# A page\n\n[gone](nowhere.md)\n")
    monkeypatch.setattr(notebooks, "PAGES", pages)
    with pytest.raises(NotebookError, match=r"book/intro.md:3: WARNING: .*nowhere.md"):
        build_pages(build / "notebooks/smoke", tmp_path / "staging")


# --- pictures of the user's own ------------------------------------------------------------------


@pytest.fixture
def flat(tmp_path):
    """A folder of ten pictures of the world, without classes."""
    (tmp_path / "photos").mkdir()
    for i, picture in enumerate(World("world", "test", 10).batch(range(10))):
        Image.fromarray(picture.permute(1, 2, 0).numpy()).save(tmp_path / "photos" / f"{i}.png")
    return f"folder:{tmp_path / 'photos'}"


def test_pictures_without_classes_get_what_clip_takes_them_for(flat):
    clip = load_clip(ModelConfig("small"))
    pictures = open_pictures(flat, "train", size=112)
    z = clip.tokens(clip.preprocess(pictures.batch(range(8))))
    named = notebooks.labelled(pictures, clip, z)
    text = clip.text_features(CLASSES, ["a photo of a {}."])
    logits = predict(clip, pictures.batch(range(8)), text)
    said = [CLASSES[i] for i in logits.argmax(1)]
    assert [named.class_names[named.label(i)] for i in range(8)] == said
    assert set(named.class_names) == set(said)  # those that occur
    two = notebooks.labelled(pictures, clip, z, CLASSES[:2])
    assert two.class_names == CLASSES[:2]
    assert [two.label(i) for i in range(8)] == logits[:, :2].argmax(1).tolist()
    assert torch.equal(named.batch([3]), pictures.batch([3]))
    world = World("land", "test", 3)
    assert notebooks.labelled(world, clip, z) is world


def test_pictures_without_classes_are_no_task_to_adapt_to(flat, tmp_path):
    p = with_pictures(load_profile("smoke"), flat)
    assert notebooks.tasks_of(p) == ("world:flowers", "world:land")
    assert notebooks.tasks_of(load_profile("smoke")) == load_profile("smoke").tasks
    for name in "ab":
        (tmp_path / name).mkdir()
        shutil.copy(tmp_path / "photos" / "1.png", tmp_path / name)
    shutil.rmtree(tmp_path / "photos")
    spec = f"folder:{tmp_path}"
    assert notebooks.tasks_of(with_pictures(p, spec)) == (spec,)


@pytest.mark.parametrize(
    ("name", "d_sae", "n", "expected"),
    [
        ("world", 3072, 2400, 350),
        ("smoke", 768, 175, 70),
        ("clip", 12_288, 77, 77),
        ("clip", 12_288, 50_000, 445),
        ("paper", 49_152, 10**6, 111),
    ],
)
def test_scored_pictures_fit_into_memory(name, d_sae, n, expected):
    clip, sae = SimpleNamespace(n_tokens=197), SimpleNamespace(d_sae=d_sae)
    assert notebooks.scored(load_profile(name), clip, sae, n) == expected
