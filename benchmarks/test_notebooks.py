"""How long each notebook takes in the smallest profile, its kernel's start included."""

import pytest
from report import against

from build import NOTEBOOKS
from execution import execute

SOURCES = sorted(NOTEBOOKS.glob("*.ipynb"))


@pytest.fixture(scope="module", autouse=True)
def runs(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATCHSAE_RUNS", str(tmp_path_factory.mktemp("runs")))
        yield


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.stem)
def test_notebook(benchmark, source, tmp_path):
    against(benchmark, "notebooks, profile smoke", source.stem)
    given = (source, {"profile": "smoke"}, tmp_path / source.name)
    benchmark.pedantic(execute, given, rounds=1)
