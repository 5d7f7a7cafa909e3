"""The notebooks are stored without outputs and run, small, as `make book` runs them."""

import json
from types import SimpleNamespace

import pytest

from execution import read_parameters
from patchsae_lib import intervals
from patchsae_lib.artefacts import ROOT

SOURCES = sorted((ROOT / "notebooks").glob("*.ipynb"))
BY_NAME = pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.stem)


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
    of_paper = [claim for claim in claims if not claim.get("own")]
    assert f"{len(of_paper)} claim" in page
    assert 0 < len(of_paper) < len(claims)
    assert page.count('class="verdict') == len(claims)


def code_of(name: str, part: str) -> str:
    """The code of the one cell of a notebook that holds a part."""
    cells = json.loads((ROOT / f"notebooks/{name}.ipynb").read_text("utf-8"))["cells"]
    (code,) = [x for x in ("".join(cell["source"]) for cell in cells) if part in x]
    return code


def test_masks_of_a_single_class_are_refused_before_anything_is_counted(monkeypatch):
    one = SimpleNamespace(test=SimpleNamespace(class_names=("owl",)))
    monkeypatch.setattr("patchsae_lib.study.Study", lambda *_: one)
    with pytest.raises(AssertionError, match="compares classes: give two at least"):
        exec(code_of("4_ablation", "study = Study("), dict(profile="", images="", sae=""))


@pytest.mark.parametrize(("original", "holds"), [(0.5, None), (0.75, True)])
def test_nothing_is_claimed_of_a_clip_at_chance(original, holds):
    claims = []
    study = SimpleNamespace(claim=lambda *_, **rule: claims.append(rule["holds"]))
    given = dict(original=original, all_on=0.75, all_off=0.5, chance=0.5, low=0.95, high=1, p=0.01)
    given |= dict(study=study, intervals=intervals)
    exec(code_of("4_ablation", "if original > chance"), given)
    assert claims == [holds]
