"""What a run leaves behind is whole, and is never mistaken for another run's."""

import json
import os
import tomllib
from dataclasses import dataclass
from pathlib import Path
from string import Formatter

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from patchsae_lib import artefacts
from patchsae_lib.artefacts import (
    DATA,
    RULES,
    AnotherRun,
    ArtefactError,
    atomic_path,
    config_hash,
    difference,
    load,
    read_checkpoint,
    record_claim,
    resume,
    run_dir,
    save,
    save_checkpoint,
    weights_hash,
    write_json,
)
from patchsae_lib.intervals import mean_interval


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


def test_what_can_save_itself_does_so_and_is_read_as_it_wants(tmp_path):
    class Note:
        def save(self, path):
            path.write_text("a note")

    save(tmp_path / "note.json", Note(), Config())
    assert load(tmp_path / "note.json", Config(), made_by="x", read=Path.read_text) == "a note"


def test_the_sidecar_says_what_made_it(tmp_path):
    save(tmp_path / "b.json", [2], Config())
    meta = json.loads((tmp_path / "b.json.meta.json").read_text())
    assert meta["config"] == {"steps": 800, "sizes": [1, 2]}
    assert meta["config_hash"] == config_hash(Config())
    assert {"python", "torch", "patchsae_lib"} <= set(meta["versions"])
    assert "git_commit" in meta
    assert {path.name for path in tmp_path.iterdir()} == {"b.json", "b.json.meta.json"}


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


def test_the_fields_that_differ_are_named():
    stored = {"clip": "ab", "profile": {"name": "world", "sae": {"k": 32}}, "only": 1}
    given = {"clip": "cd", "profile": {"name": "world", "sae": {"k": 64}}}
    expected = "clip: 'ab' there, 'cd' here; only: 1 there, None here; profile.sae.k: 32 there, 64"
    assert difference(stored, given) == f"{expected} here"


def test_the_hash_of_weights_knows_every_weight_and_its_name():
    layer = nn.Linear(3, 2)
    hashes = {weights_hash(layer)}
    assert weights_hash(layer) in hashes
    with torch.no_grad():
        layer.bias[1] += 1e-6
    hashes.add(weights_hash(layer))
    hashes.add(weights_hash(nn.Sequential(layer)))
    assert len(hashes) == 3
    assert weights_hash(layer.bfloat16()) not in hashes


def test_what_a_killed_process_has_left_is_removed_by_the_next(tmp_path: Path) -> None:
    def temporary(host: str, pid: int) -> Path:
        path = tmp_path / f".a.json.{host}-{pid}.tmp"
        path.mkdir()
        (path / "a.json").write_text("{")
        return path

    child = os.fork()
    if not child:
        os._exit(0)
    os.waitpid(child, 0)
    left = temporary(artefacts.HOST, child)
    others = temporary(artefacts.HOST, os.getppid()), temporary("elsewhere", child)
    (tmp_path / f".notes.{artefacts.HOST}-x.tmp").write_text("a user's")
    write_json(tmp_path / "b.json", {})
    assert not left.exists()
    assert all(path.exists() for path in others)  # they are being written
    assert len(list(tmp_path.iterdir())) == 4


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


# --- checkpoints

RUN = {"seed": 3, "sizes": (1, 2)}


def test_a_checkpoint_comes_back_for_its_run_only(tmp_path):
    path = tmp_path / "training.safetensors"
    assert resume(None, RUN) is None
    assert resume(path, RUN) is None
    save_checkpoint(path, RUN, {"w": torch.arange(6.0).view(2, 3).T}, step=7, history=[{"l": 0.5}])
    for tensors, state in (resume(path, RUN), read_checkpoint(path, RUN)):
        assert torch.equal(tensors["w"], torch.arange(6.0).view(2, 3).T)
        assert state == {"step": 7, "history": [{"l": 0.5}]}
    with pytest.raises(AnotherRun, match=r"another run's checkpoint \(seed: 3 there, 4 here\)"):
        read_checkpoint(path, RUN | {"seed": 4})
    content = path.read_bytes()
    with pytest.warns(match=r"seed: 3 there, 4 here.*kept as training.safetensors.old, starting"):
        assert resume(path, RUN | {"seed": 4}) is None
    assert {p.name for p in tmp_path.iterdir()} == {"training.safetensors.old"}
    assert (tmp_path / "training.safetensors.old").read_bytes() == content


@pytest.mark.parametrize("n", [0, 5, 60])
def test_a_checkpoint_that_is_cut_short_is_an_error(tmp_path, n):
    path = tmp_path / "training.safetensors"
    save_checkpoint(path, RUN, {"w": torch.ones(3)})
    path.write_bytes(path.read_bytes()[:n])
    with pytest.raises(ValueError, match=r"not a whole checkpoint .* delete it to start again"):
        resume(path, RUN)
    assert path.exists()


# --- claims

CLAIMS = tomllib.loads((DATA / "paper" / "claims.toml").read_text("utf-8"))


def claims(folder):
    return json.loads((folder / "claims.json").read_text())


def test_claims_are_replaced_by_id_and_sorted(tmp_path):
    record_claim(tmp_path, "2-depth", "0.5", holds=False)
    record_claim(tmp_path, "1-lambda", "2 of 3", True, interval=(np.float32(0.25), 0.5))
    record_claim(tmp_path, "2-depth", "0.7", holds=True)
    first, second = claims(tmp_path)
    assert (first["id"], first["measured"], first["interval"]) == (
        "1-lambda",
        "2 of 3",
        [0.25, 0.5],
    )
    assert (second["id"], second["measured"], second["verdict"]) == (
        "2-depth",
        "0.7",
        "reproduced",
    )
    for claim in (first, second):
        assert {key: claim[key] for key in CLAIMS[claim["id"]]} == CLAIMS[claim["id"]]


@pytest.mark.parametrize(
    ("holds", "partly", "verdict"),
    [
        (True, True, "reproduced"),
        (True, False, "reproduced"),
        (False, True, "partly"),
        (False, False, "not"),
        (None, False, "not testable here"),
        (np.bool_(True), np.bool_(False), "reproduced"),
    ],
)
def test_the_verdict_follows_from_the_rules(tmp_path, holds, partly, verdict):
    record_claim(tmp_path, "2-depth", "0.5", holds, partly)
    assert claims(tmp_path)[0]["verdict"] == verdict


def test_values_fill_in_the_note(tmp_path):
    name, note = next((id, claim["note"]) for id, claim in CLAIMS.items() if "{" in claim["note"])
    values = {field: 0.25 for _, field, _, _ in Formatter().parse(note) if field}
    with pytest.raises(KeyError):
        record_claim(tmp_path, name, "0.5", True)
    record_claim(tmp_path, name, "0.5", True, **values)
    assert claims(tmp_path)[0]["note"] == note.format(**values) != note


def test_a_claim_of_the_paper_has_its_place_and_an_ordered_interval(tmp_path):
    with pytest.raises(ValueError, match=r"no claim '9-none' in data/paper/claims.toml, but 1-"):
        record_claim(tmp_path, "9-none", "0.5", True)
    record_claim(tmp_path, "2-depth", "0.5", True, interval=(float("nan"), float("nan")))
    assert claims(tmp_path)[0]["interval"] is None
    for interval in ((1.0, float("nan")), (2, 1)):
        with pytest.raises(ValueError, match=r"claim 2-depth: .*\(low, high\)"):
            record_claim(tmp_path, "2-depth", "0.5", True, interval=interval)
    assert len(claims(tmp_path)) == 1


def test_a_claim_knows_the_unit_of_its_interval_its_test_and_its_power(tmp_path):
    interval = mean_interval([0.1, 0.2, 0.4], over="seeds")
    record_claim(tmp_path, "2-depth", "0.5", None, interval=interval, p=interval.p)
    (claim,) = claims(tmp_path)
    assert claim["interval"] == pytest.approx(interval[1:])
    assert (claim["over"], claim["p"], claim["detectable"]) == ("seeds", interval.p, "")
    record_claim(tmp_path, "2-depth", "0.5", None, p=float("nan"), detectable="a rise of 0.1")
    (claim,) = claims(tmp_path)
    assert (claim["over"], claim["p"], claim["detectable"]) == ("", None, "a rise of 0.1")
    with pytest.raises(ValueError, match=r"claim 2-depth: p = 1.5 is not a p-value"):
        record_claim(tmp_path, "2-depth", "0.5", None, p=1.5)


def test_a_claim_is_text_in_a_notebook_and_its_record_for_the_book(tmp_path):
    claim = record_claim(tmp_path, "1-lambda", "{2} of 3", False, True, interval=(0.25, 0.5))
    bundle = claim._repr_mimebundle_()
    assert bundle[artefacts.CLAIM] == claims(tmp_path)[0]
    head, paper, here, rule = bundle["text/plain"].splitlines()
    assert head == f"{claim['claim']} (Table 2)"
    assert paper == f"Paper: {claim['paper']}"
    assert here == "Here: {2} of 3 (0.25 to 0.5): partly"
    assert "Rule: twice the others' effect" in rule
    without = record_claim(tmp_path, "1-lambda", "2 of 3", None)
    assert "Here: 2 of 3: not testable here\n" in repr(without)


def test_when_a_rule_was_fixed_is_one_of_two(tmp_path, monkeypatch):
    (tmp_path / "paper").mkdir()
    text = '[2-depth]\nnote = ""\nrule = "{}"\n'
    monkeypatch.setattr(artefacts, "DATA", tmp_path)
    (tmp_path / "paper" / "claims.toml").write_text(text.format("after a look"))
    record_claim(tmp_path, "2-depth", "0.5", True)
    assert claims(tmp_path)[0]["rule"] == "after a look"
    (tmp_path / "paper" / "claims.toml").write_text(text.format("later"))
    with pytest.raises(ValueError, match="fixed before or after a look, not 'later'"):
        record_claim(tmp_path, "2-depth", "0.5", True)


def test_runs_can_be_kept_elsewhere(tmp_path, monkeypatch):
    assert run_dir("world").parts[-2:] == ("runs", "world")
    monkeypatch.setenv("PATCHSAE_RUNS", str(tmp_path))
    assert run_dir("world") == tmp_path / "world"


def test_every_claim_with_a_verdict_says_when_its_rule_was_fixed() -> None:
    claims = tomllib.loads((DATA / "paper" / "claims.toml").read_text("utf-8"))
    without = {id for id, claim in claims.items() if claim.get("rule") not in RULES}
    assert without == {"4-oracle", "5-own-sae"}  # these have no verdict
