"""The commands train and scan, by one process and by two that torchrun starts."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from patchsae_lib import jobs
from patchsae_lib.__main__ import main
from patchsae_lib.artefacts import DATA
from patchsae_lib.interop.openclip import load_small_clip
from patchsae_lib.latents import SUMS, LatentTable
from patchsae_lib.sae import SAE
from patchsae_lib.shards import collect_shards
from patchsae_lib.world import Picture, World

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
    from functools import partial
    from patchsae_lib import jobs
    from patchsae_lib.__main__ import main
    from patchsae_lib.training import Trainer

    step, jobs.KEPT_EVERY = Trainer.step, 5
    jobs.collect_shards = partial(jobs.collect_shards, shard=16)

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
    said = killed.stderr
    assert "process 0 of 2 stops: another one has ended before its time" in said
    assert "Start the same command again: it goes on" in said
    assert "Signal 9 (SIGKILL)" in said  # torchrun's own words
    assert "jobs.py" not in said  # no traceback of ours
    shards = {path: path.stat().st_mtime_ns for path in two.glob("tiny/tokens/*/*")}
    assert len(shards) == 4  # three and cache.json
    assert {path.name for path in (two / "tiny").iterdir()} == {"tokens", CHECKPOINT}

    resumed = torchrun(str(script), train, *scans, PATCHSAE_RUNS=str(two))
    assert resumed.returncode == 0, resumed.stderr
    assert {path: path.stat().st_mtime_ns for path in shards} == shards  # kept
    assert len(resumed.stdout.splitlines()) == 4  # said by one of them
    written = {"tokens", CHECKPOINT, "sae.safetensors", "latents.safetensors"}
    assert {path.name for path in (two / "tiny").iterdir()} == written

    monkeypatch.setenv("PATCHSAE_RUNS", str(one))
    small = {"shard": 16, "progress": False}
    monkeypatch.setattr(jobs, "collect_shards", lambda *a: collect_shards(*a, **small))
    assert [main(command.split()) for command in (train, *scans)] == [0, 0, 0]
    ours, theirs = (load_file(runs / "tiny" / "sae.safetensors") for runs in (two, one))
    for name in theirs:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-3, atol=1e-4)
    for profile in ("tiny", "flowers"):
        tables = (LatentTable.load(runs / profile / "latents.safetensors") for runs in (two, one))
        same(*tables)


def same(ours: LatentTable, theirs: LatentTable) -> None:
    """Equal but for the order in which floats were added."""
    for name in (*SUMS, "top_values", "top_images", "top_labels"):
        a, b = getattr(ours, name), getattr(theirs, name)
        if name in ("total", "top_values"):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=0)
        else:
            assert torch.equal(a, b), name
    assert (ours.images, ours.tokens) == (theirs.images, theirs.tokens)


def test_unknown_parameters_and_missing_files_are_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATCHSAE_RUNS", str(tmp_path))
    for command, said in (
        (["train", "-p", "pictures", "world"], "unknown parameter 'pictures'; known are images"),
        (["train", "--tokens", str(tmp_path)], "cache.json: the tokens are not collected"),
        (["scan", "--profile", "smoke"], "sae.safetensors: notebook 1 makes it"),
        (["scan", "--profile", "none"], "no profile 'none'"),
    ):
        assert main(command) == 1
        err = capsys.readouterr().err
        assert said in err
        assert err.count("\n") == 1


def test_a_scan_that_was_killed_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Pulled(Exception):
        pass

    class Unplugged(World):
        stop, asked = -1, ()

        def picture(self, index: int) -> Picture:
            if index == self.stop:
                raise Pulled
            self.asked = (*self.asked, index)
            return super().picture(index)

    monkeypatch.setattr(jobs, "KEPT_EVERY", 4)
    clip, pictures = load_small_clip(DATA / "small_clip"), Unplugged("objects", n=14)
    sae = SAE(clip.d_vit, 16).eval().requires_grad_(False)
    whole = jobs._scan_pictures(clip, sae, pictures, tmp_path / "whole")
    pictures.stop = 9
    with pytest.raises(Pulled):
        jobs._scan_pictures(clip, sae, pictures, tmp_path / "kept")
    pictures.stop, pictures.asked = -1, ()
    resumed = jobs._scan_pictures(clip, sae, pictures, tmp_path / "kept")
    assert pictures.asked == tuple(range(8, 14))  # what the first two of four parts had is kept
    same(resumed, whole)
