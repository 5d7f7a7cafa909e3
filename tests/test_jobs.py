"""The commands train and scan, by one process and by two that torchrun starts."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from patchsae_lib import jobs
from patchsae_lib import study as study_module
from patchsae_lib import tokens as tokens_module
from patchsae_lib.__main__ import main
from patchsae_lib.interop import save_sae
from patchsae_lib.latents import SUMS, LatentTable
from patchsae_lib.profiles import StatisticsConfig, load_profile
from patchsae_lib.sae import SAE
from patchsae_lib.study import Study

CHECKPOINT = "training-shards.safetensors"
PROFILE = """
[model]
name = "small"
[pictures]
n_train = 40
[sae]
expansion = 2
l1 = 4e-4
scale_inputs = true
[train]
batch_tokens = 256
steps = 20
warmup = 5
checkpoint_every = 6
"""
JOB = """
    import os, signal, sys
    from patchsae_lib import jobs, tokens
    from patchsae_lib.__main__ import main
    from patchsae_lib.training import Trainer

    step, jobs.KEPT_EVERY, tokens.SHARD = Trainer.step, 5, 16

    def pulled(trainer, z):
        if trainer.n_steps == 9 and os.environ["RANK"] == "1":
            os.kill(os.getpid(), signal.SIGKILL)
        return step(trainer, z)

    if "KILL" in os.environ:
        Trainer.step = pulled
    sys.exit(any(main(command.split()) for command in sys.argv[1:]))
"""


def torchrun(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", *arguments]
    env = os.environ | {"OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1"} | environment
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)


def test_a_job_whose_process_is_killed_says_so_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script, two, one = (tmp_path / name for name in ("job.py", "two", "one"))
    script.write_text(textwrap.dedent(JOB))
    for name in ("tiny", "flowers"):
        (tmp_path / f"{name}.toml").write_text(PROFILE)
    train, *scans = (
        f"train --profile {tmp_path}/tiny.toml",
        f"scan --profile {tmp_path}/tiny.toml --sae {two}/tiny/sae.safetensors",  # from shards
        f"scan --profile {tmp_path}/flowers.toml --sae {two}/tiny/sae.safetensors "
        "-p images world:flowers",  # from pictures
    )

    killed = torchrun(str(script), train, KILL="1", PATCHSAE_RUNS=str(two))
    assert killed.returncode == 1
    message = killed.stderr
    assert "process 0 of 2 stops: another one has ended before its time" in message
    assert "Start the same command again: it goes on" in message
    assert "Signal 9 (SIGKILL)" in message  # torchrun's own words
    assert "jobs.py" not in message  # no traceback of ours
    shards = {path: path.stat().st_mtime_ns for path in two.glob("tiny/tokens/*/*")}
    assert len(shards) == 4  # three and cache.json
    assert {path.name for path in (two / "tiny").iterdir()} == {"tokens", CHECKPOINT}

    resumed = torchrun(str(script), train, *scans, PATCHSAE_RUNS=str(two))
    assert resumed.returncode == 0, resumed.stderr
    assert {path: path.stat().st_mtime_ns for path in shards} == shards  # kept
    assert len(resumed.stdout.splitlines()) == 4  # said by one of them
    artefacts = ("sae.safetensors", "latents.safetensors")
    written = {"tokens", CHECKPOINT, *artefacts, *(f"{name}.meta.json" for name in artefacts)}
    assert {path.name for path in (two / "tiny").iterdir()} == written

    monkeypatch.setenv("PATCHSAE_RUNS", str(one))
    monkeypatch.setattr(tokens_module, "SHARD", 16)
    assert [main(command.split()) for command in (train, *scans)] == [0, 0, 0]
    by_two, by_one = (load_file(runs / "tiny" / "sae.safetensors") for runs in (two, one))
    for name, tensor in by_one.items():
        torch.testing.assert_close(by_two[name], tensor, rtol=1e-3, atol=1e-4)
    for profile in ("tiny", "flowers"):
        tables = (LatentTable.load(runs / profile / "latents.safetensors") for runs in (two, one))
        same(*tables)


def same(table: LatentTable, expected: LatentTable) -> None:
    """Equal but for the order in which floats were added."""
    for name in (*SUMS, "top_values", "top_images", "top_labels"):
        a, b = getattr(table, name), getattr(expected, name)
        if name in ("total", "top_values"):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=0)
        else:
            assert torch.equal(a, b), name
    assert (table.images, table.tokens) == (expected.images, expected.tokens)


def test_what_a_scan_leaves_is_the_table_of_the_study(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATCHSAE_RUNS", str(tmp_path / "runs"))
    path = tmp_path / "tiny.toml"
    path.write_text(PROFILE.replace("n_train = 40", "n_train = 20"))
    save_sae(tmp_path / "sae.safetensors", SAE(192, 384))
    given = f"scan --profile {path} --sae {tmp_path / 'sae.safetensors'}"
    assert main(given.split()) == 0
    study = Study(path, sae=str(tmp_path / "sae.safetensors"))
    from_pictures = study.kept("latents.safetensors", "2_statistics", read=LatentTable.load)
    assert not (study.folder / "tokens").exists()
    monkeypatch.setattr(study_module, "scan_tokens", None)  # counting again would fail
    same(study.table, from_pictures)
    monkeypatch.setattr(tokens_module, "SHARD", 8)
    assert len(study.train.tokens.sizes) == 3
    assert main(given.split()) == 0  # from shards
    from_shards = study.kept("latents.safetensors", "2_statistics", read=LatentTable.load)
    assert torch.equal(from_shards.class_images, from_pictures.class_images)
    torch.testing.assert_close(from_shards.total, from_pictures.total, rtol=0.02, atol=1e-3)


def test_unknown_parameters_and_missing_files_are_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATCHSAE_RUNS", str(tmp_path))
    (tmp_path / "bad.toml").write_text("seeds = 'three'")
    for command, message in (
        (["train", "-p", "pictures", "world"], "unknown parameter 'pictures'; known are images"),
        (["train", "--tokens", str(tmp_path)], "cache.json: the tokens are not collected"),
        (["scan", "--profile", "smoke"], "sae.safetensors is not there: run 1_training first"),
        (["scan", "--profile", "none"], "no profile 'none'"),
        (["train", "-p", "profile", "5"], "unknown parameter 'profile'; known are images"),
        (["train", "--profile", str(tmp_path / "bad.toml")], "bad.toml: seeds must be int, got"),
    ):
        assert main(command) == 1
        stderr = capsys.readouterr().err
        assert message in stderr
        assert stderr.count("\n") == 1


class Pulled(Exception):
    """The plug is pulled."""


class Dots:
    """Picture i is the number i + 1. Reading `stop` pulls the plug; those that are `bad` cannot
    be read."""

    class_names = ("even", "odd")

    def __init__(self, n: int, *bad: int) -> None:
        self.n, self.bad, self.stop, self.asked = n, bad, -1, list[int]()

    def __len__(self) -> int:
        return self.n

    def label(self, index: int) -> int:
        return index % 2

    def batch(self, indices: list[int]) -> Tensor:
        if self.stop in indices:
            raise Pulled
        if set(self.bad) & set(indices):
            raise OSError("cannot be read")
        self.asked += indices
        return torch.tensor(indices).view(-1, 1, 1, 1) + 1


class FakeStudy(SimpleNamespace):
    """Of picture x the only token is (x, x, x, x), and these are its latents."""

    def __init__(self, folder: Path, pictures: Dots) -> None:
        sae = SAE(4, 4).eval().requires_grad_(False)
        sae.W_enc.copy_(torch.eye(4))
        profile = SimpleNamespace(statistics=StatisticsConfig(k=3), pictures=pictures)
        pictures.spec = "dots"
        about = {"profile": profile, "folder": folder, "n_tokens": 1, "at_once": 8}
        super().__init__(clip=self, sae=sae, **about)

    def identity(self) -> dict[str, str]:
        return {"name": "fake"}

    def preprocess(self, images: Tensor) -> Tensor:
        return images.float()

    def tokens(self, images: Tensor) -> Tensor:
        return images[:, 0].expand(-1, 1, 4)

    def training_pictures(self, spec: str) -> Dots:
        return self.profile.pictures

    def place(self, *_: object) -> tuple[Path, dict]:
        return self.folder / "no-shards", {}

    def keep(self, name: str, table: LatentTable) -> Path:
        table.save(self.folder / name)
        return self.folder / name


def test_a_scan_that_was_killed_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "KEPT_EVERY", 100)
    pictures = Dots(300, 50)
    study = FakeStudy(tmp_path, pictures)
    undisturbed = jobs._scan_pictures(study, pictures, tmp_path / "undisturbed")
    assert (undisturbed.images, undisturbed.skipped) == (299, [50])
    pictures.stop = 250
    with pytest.raises(Pulled):
        jobs._scan_pictures(study, pictures, tmp_path / "kept")
    pictures.stop, pictures.asked = -1, []
    resumed = jobs._scan_pictures(study, pictures, tmp_path / "kept")
    assert pictures.asked == list(range(200, 300))  # what the first two of three parts had is kept
    same(resumed, undisturbed)


@pytest.mark.parametrize("checked", [100, 1000])
def test_reference_images_are_numbered_as_a_study_numbers_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, checked: int
) -> None:
    """Of pictures that were not tried, `Study.train` leaves out what cannot be read."""
    monkeypatch.setattr(jobs, "CHECKED", checked)
    monkeypatch.setattr(jobs, "_study", lambda *_: FakeStudy(tmp_path, Dots(205, 100, 203)))
    jobs.scan([])
    table = LatentTable.load(tmp_path / "latents.safetensors")
    assert (table.images, table.skipped) == (203, [100, 203])
    last = [204, 202, 201] if checked == 1000 else [202, 201, 200]
    assert table.top_images.tolist() == [last] * 4
    assert table.top_values[0].tolist() == [205, 203, 202]
    assert [path.name for path in tmp_path.iterdir()] == ["latents.safetensors"]


def test_shards_are_counted_without_reading_others_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three processes count the parts of five shards; merged they are what one would count."""
    read = []

    def shard(number: int) -> Tensor:
        read.append(number)
        return (torch.arange(3.0) + 3 * number + 1).view(3, 1, 1).expand(3, 2, 4)

    tokens = tokens_module.Tokens(shard, (3,) * 5, 2, 4, torch.arange(15), skipped=(7,))
    study = FakeStudy(tmp_path, Dots(15))
    labels = torch.arange(15) % 2
    study.train = SimpleNamespace(tokens=tokens, labels=labels, class_names=("even", "odd"))
    undivided = jobs._scan_shards(study)
    assert undivided.skipped == [7]
    tables, parts = [], []
    monkeypatch.setattr("patchsae_lib.distributed.world_size", lambda: 3)
    for number in range(3):
        monkeypatch.setattr("patchsae_lib.distributed.rank", lambda number=number: number)
        monkeypatch.setattr(jobs, "rank", lambda number=number: number)
        read.clear()
        tables.append(jobs._scan_shards(study))
        parts.append(sorted(set(read)))
    assert parts == [[0], [1, 2], [3, 4]]
    first, second, third = tables
    merged = third.merge(first).merge(second)
    same(merged, undivided)
    assert merged.skipped == [7]  # once


def test_a_profile_is_known_before_processes_are_joined(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "processes", None)
    assert load_profile("smoke").name == "smoke"
    with pytest.raises(ValueError, match="no profile 'none'"):
        jobs.train(["--profile", "none"])
