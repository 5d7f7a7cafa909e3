"""What a run leaves behind is whole, and is what the reader expects it to be."""

import json
from dataclasses import dataclass

import numpy as np
import pandas as pd
import pytest
import torch

from patchsae_lib.artefacts import (
    ArtefactError,
    atomic_path,
    config_hash,
    load,
    record_claim,
    run_dir,
    save,
)
from patchsae_lib.evaluation import bootstrap_mean


@dataclass(frozen=True)
class Config:
    steps: int = 800
    sizes: tuple[int, ...] = (1, 2)


def test_tensors_tables_and_json_come_back(tmp_path):
    tensors = {"W_dec": torch.arange(6.0).view(2, 3).T}  # not contiguous
    table = pd.DataFrame({"latent": [3, 1], "n_active": [0.5, 2.0]})
    save(tmp_path / "sae.safetensors", tensors, Config())
    save(tmp_path / "table.parquet", table, Config())
    save(tmp_path / "curve.json", {"k": [1, 2], "λ": np.float32(0.5)}, Config())
    back = load(tmp_path / "sae.safetensors", Config(), made_by="1_training")
    assert torch.equal(back["W_dec"], tensors["W_dec"])
    pd.testing.assert_frame_equal(
        load(tmp_path / "table.parquet", Config(), made_by="2_statistics"), table
    )
    assert load(tmp_path / "curve.json", Config(), made_by="x") == {"k": [1, 2], "λ": 0.5}


def test_the_sidecar_says_what_made_it(tmp_path):
    source = tmp_path / "a.json"
    save(source, [1], Config())
    save(tmp_path / "b.json", [2], Config(), inputs=[source], seed=7)
    meta = json.loads((tmp_path / "b.json.meta.json").read_text())
    assert meta["config"] == {"steps": 800, "sizes": [1, 2]}
    assert meta["config_hash"] == config_hash(Config())
    assert meta["seed"] == 7
    assert set(meta["inputs"]) == {"a.json"}
    assert {"python", "torch", "patchsae_lib"} <= set(meta["versions"])
    assert "git_commit" in meta


def test_another_config_is_named_with_ours_and_the_notebook(tmp_path):
    save(tmp_path / "a.json", [1], Config(steps=400))
    with pytest.raises(ArtefactError) as error:
        load(tmp_path / "a.json", Config(), made_by="notebooks/1_training.ipynb")
    for part in (config_hash(Config(steps=400)), config_hash(Config()), "steps: 400 there, 800"):
        assert part in str(error.value)
    assert "run notebooks/1_training.ipynb again" in str(error.value)


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda p: p.unlink(), "is not there: run 1_training first"),
        (lambda p: p.write_bytes(p.read_bytes()[:-3]), "is not the file its sidecar describes"),
        (lambda p: p.write_bytes(b"\0" * p.stat().st_size), "is not the file its sidecar"),
        (lambda p: p.with_name("a.safetensors.meta.json").unlink(), "no readable sidecar"),
        (lambda p: p.with_name("a.safetensors.meta.json").write_text("{"), "no readable sidecar"),
    ],
)
def test_a_broken_artefact_says_what_to_run(tmp_path, harm, message):
    path = tmp_path / "a.safetensors"
    save(path, {"x": torch.ones(3)}, Config())
    harm(path)
    with pytest.raises(ArtefactError, match=message):
        load(path, Config(), made_by="1_training")


def test_an_artefact_older_than_its_input_is_refused(tmp_path):
    source, path = tmp_path / "sae.json", tmp_path / "table.json"
    save(source, [1], Config())
    save(path, [2], Config(), inputs=[source])
    save(source, [3], Config())
    with pytest.raises(ArtefactError, match=r"made from another sae.json: run 2_stat"):
        load(path, Config(), made_by="2_statistics")


def test_an_interrupted_write_leaves_the_old_file_alone(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")

    def write_half():
        with atomic_path(path) as temporary:
            temporary.write_text("ne")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_half()
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_other_suffixes_and_configs_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"safetensors, .parquet or .json, not '.pkl'"):
        save(tmp_path / "a.pkl", [], Config())
    with pytest.raises(TypeError, match="not int"):
        config_hash(3)


def test_claims_are_replaced_by_id_and_sorted(tmp_path):
    claim = {"where": "Fig. 3", "paper": "two clusters", "measured": 0.5, "verdict": "partly"}
    record_claim(tmp_path, id="fig3", **claim)
    record_claim(tmp_path, id="eq2", **claim, interval=(np.float32(0.25), 0.5), note="3 seeds")
    record_claim(tmp_path, id="fig3", **(claim | {"verdict": "reproduced"}))
    claims = json.loads((tmp_path / "claims.json").read_text())
    assert [(c["id"], c["verdict"]) for c in claims] == [("eq2", "partly"), ("fig3", "reproduced")]
    assert claims[0]["interval"] == [0.25, 0.5]


def test_an_interval_of_no_values_is_none(tmp_path):
    claim = dict(id="eq2", where="eq. 2", paper=1, measured=2, verdict="partly")
    record_claim(tmp_path, **claim, interval=bootstrap_mean([])[1:])
    assert json.loads((tmp_path / "claims.json").read_text())[0]["interval"] is None


def test_a_claim_needs_a_known_verdict_and_an_ordered_interval(tmp_path):
    claim = {"id": "x", "where": "Fig. 3", "paper": 1, "measured": 2}
    with pytest.raises(ValueError, match="'yes' is none of reproduced, partly, not"):
        record_claim(tmp_path, **claim, verdict="yes")
    with pytest.raises(ValueError, match=r"\(low, high\)"):
        record_claim(tmp_path, **claim, verdict="not", interval=(1.0, float("nan")))
    with pytest.raises(ValueError, match="JSON"):
        record_claim(tmp_path, **(claim | {"measured": float("nan")}), verdict="not")
    assert not list(tmp_path.iterdir())


def test_runs_can_be_kept_elsewhere(tmp_path, monkeypatch):
    assert run_dir("world").parts[-2:] == ("runs", "world")
    monkeypatch.setenv("PATCHSAE_RUNS", str(tmp_path))
    assert run_dir("world") == tmp_path / "world"
