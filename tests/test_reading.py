"""Pictures in batches, read by one process or by many."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch
from nbclient import NotebookClient
from nbformat.v4 import new_code_cell, new_notebook
from PIL import Image
from torch import Tensor

from patchsae_lib import tokens as tokens_module
from patchsae_lib.pictures import Pictures, ReadOnce, Subset, open_pictures, reading
from patchsae_lib.pictures.reading import read_batches
from patchsae_lib.tokens import collect, collect_shards
from patchsae_lib.world import World

PARTS = [range(start, min(start + 3, 20)) for start in range(0, 20, 3)]
NUMBERS = pytest.mark.parametrize("n", [0, 1, 2])


def read_by(monkeypatch: pytest.MonkeyPatch, n: int) -> None:
    """Have pictures read by `n` processes, however quickly they are read."""
    monkeypatch.setattr(reading, "WORTH", -1.0)
    monkeypatch.setattr(reading, "_n_workers", lambda _size: n)


@pytest.fixture
def photos(tmp_path: Path) -> Pictures:
    """Twenty pictures, of which number 7 and number 8 cannot be read."""
    for i in range(25):
        path = tmp_path / "photos" / "dog" / f"{i:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (9, 9), (10 * i, 0, 255)).save(path)
    pictures = open_pictures(f"folder:{tmp_path / 'photos'}", size=4, check=False)
    for i in (7, 8):
        Path(pictures.source.item(pictures.order[i])).write_text("no picture")
    return pictures


class Means:
    """A CLIP whose two tokens are the mean colour of a picture."""

    at_once = 3

    def preprocess(self, images: Tensor) -> Tensor:
        return images.float()

    def tokens(self, images: Tensor) -> Tensor:
        return images.mean(dim=(2, 3))[:, None].expand(-1, 2, -1) + 1


def test_pictures_that_stay_in_memory_are_read_where_they_stay(
    photos: Pictures, monkeypatch: pytest.MonkeyPatch
) -> None:
    read_by(monkeypatch, 2)
    kept = ReadOnce(Subset(photos, [0, 1, 2, 3]))
    first, second = (list(read_batches(Subset(kept), [[0, 1], [2, 3]])) for _ in range(2))
    assert sorted(kept._kept) == [0, 1, 2, 3]
    assert all(torch.equal(a, b) for (_, a), (_, b) in zip(first, second, strict=True))


@NUMBERS
def test_batches_are_the_same_and_in_order_whoever_reads_them(
    photos: Pictures, monkeypatch: pytest.MonkeyPatch, n: int
) -> None:
    read_by(monkeypatch, n)
    before = torch.get_rng_state()
    skipped = [100]
    batches = list(read_batches(photos, PARTS, skipped))
    assert torch.equal(torch.get_rng_state(), before)
    indices = [[i for i in part if i not in (7, 8)] for part in PARTS]
    assert [readable for readable, _ in batches] == indices
    assert skipped == [100, 7, 8]
    for readable, images in batches:
        assert images.dtype == torch.uint8
        assert torch.equal(images, photos.batch(readable))
    assert multiprocessing.active_children() == []
    assert list(read_batches(photos, [])) == []


def test_processes_do_read(monkeypatch: pytest.MonkeyPatch) -> None:
    class Numbered(World):
        keeps = False

        def batch(self, indices: Sequence[int]) -> Tensor:
            return torch.full((len(indices), 3, 2, 2), os.getpid())

    read_by(monkeypatch, 2)
    readers = [int(images[0, 0, 0, 0]) for _, images in read_batches(Numbered(), PARTS)]
    assert readers[0] == os.getpid()
    assert len({*readers[1:]}) == 2
    assert os.getpid() not in readers[1:]


def test_they_end_when_no_more_is_asked_for(
    photos: Pictures, monkeypatch: pytest.MonkeyPatch
) -> None:
    read_by(monkeypatch, 2)
    batches = read_batches(photos, PARTS)
    next(batches)
    assert len(multiprocessing.active_children()) == 2
    batches.close()
    assert multiprocessing.active_children() == []


@NUMBERS
def test_what_cannot_be_read_is_named_and_skipped_alike(
    photos: Pictures, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, n: int
) -> None:
    read_by(monkeypatch, n)
    monkeypatch.setattr(tokens_module, "SHARD", 5)
    monkeypatch.setattr(tokens_module, "require_readable", lambda *_: None)
    name = photos.source.item(photos.order[7])
    with pytest.raises(OSError, match=r"\.png cannot be read as a picture") as raised:
        collect(Means(), photos)
    assert name in str(raised.value)
    assert "\n" not in str(raised.value)
    tokens = collect_shards(Means(), photos, tmp_path / "tokens", {"pictures": 1})
    assert tokens.skipped == (7, 8)
    assert tokens.sizes == (5, 3, 5, 5)
    expected = photos.batch(tokens.indices.tolist()).float().mean(dim=(2, 3)) + 1
    assert torch.equal(tokens[:][:, 0], expected.bfloat16())
    assert multiprocessing.active_children() == []


def test_an_error_in_the_middle_ends_them(
    tmp_path: Path, photos: Pictures, monkeypatch: pytest.MonkeyPatch
) -> None:
    read_by(monkeypatch, 2)
    with pytest.raises(ValueError, match="2 of 20 pictures cannot be read") as raised:
        collect_shards(Means(), photos, tmp_path / "tokens", {"pictures": 1})
    assert multiprocessing.active_children() == []  # as long as a notebook keeps the error, too
    assert raised.tb is not None


# --- how many ------------------------------------------------------------------------------------


def test_quick_pictures_are_read_without_processes(photos: Pictures) -> None:
    for _ in read_batches(Subset(photos, range(7)), [[0, 1, 2], [3, 4, 5], [6]]):
        assert multiprocessing.active_children() == []


def test_as_many_as_there_are_cores_and_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(64), raising=False)
    monkeypatch.setattr(sys, "platform", "linux")
    free = {"bytes": 24 * 10**9}

    class Usage:
        @property
        def free(self) -> int:
            return free["bytes"]

    monkeypatch.setattr(reading.shutil, "disk_usage", lambda _: Usage())
    assert reading._n_workers(4_816_896) == reading.MOST
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    assert reading._n_workers(4_816_896) == 8
    free["bytes"] = 64 * 2**20  # what Docker gives
    assert reading._n_workers(4_816_896) == 1
    assert reading._n_workers(10**8) == 0
    monkeypatch.setattr(sys, "platform", "darwin")
    assert reading._n_workers(1) == 0


# --- from outside --------------------------------------------------------------------------------

SCRIPT = """
import multiprocessing, time
from patchsae_lib.pictures import open_pictures, reading
import torch
(torch.ones(500, 500) @ torch.ones(500, 500)).sum()  # threads of torch's, before the fork
reading.WORTH, reading._n_workers = -1.0, lambda size: 2
parts = [range(i, i + 2) for i in range(0, 2000, 2)]
pictures = open_pictures("world", n=2000)
pictures.keeps = False  # or this process would read them itself
for i, batch in enumerate(reading.read_batches(pictures, parts)):
    if i == 5:
        print(*[process.pid for process in multiprocessing.active_children()], flush=True)
    time.sleep(0.01)
    STOP
"""


@pytest.fixture
def job(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A script, without `if __name__ == "__main__"`, that reads with two processes."""
    (tmp_path / "script.py").write_text(SCRIPT.replace("STOP", "pass"))
    pipe, command = subprocess.PIPE, [sys.executable, str(tmp_path / "script.py")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(
        command, stdout=pipe, stderr=pipe, text=True, start_new_session=True, env=environment
    ) as process:
        yield process
        process.kill()


def is_alive(pid: int) -> bool:
    path = Path(f"/proc/{pid}/stat")
    return path.exists() and path.read_text().rpartition(")")[2].split()[0] != "Z"


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere no processes are forked")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_they_end_with_the_program(job: subprocess.Popen[str], number: int) -> None:
    workers = [int(pid) for pid in job.stdout.readline().split()]
    assert len(workers) == 2
    assert all(map(is_alive, workers))
    if number == signal.SIGINT:  # Ctrl-C is for all processes of a terminal
        os.killpg(job.pid, number)
    else:
        job.send_signal(number)
    _, said = job.communicate(timeout=30)
    assert job.returncode
    assert ("KeyboardInterrupt" in said) == (number == signal.SIGINT)
    for _ in range(200):
        if not any(map(is_alive, workers)):
            return
        time.sleep(0.1)
    raise AssertionError("they outlive the program")


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere no processes are forked")
def test_a_kernel_of_jupyter_reads_with_processes() -> None:
    code = SCRIPT.replace("STOP", "if i == 50: break").replace("    time.sleep(0.01)\n", "")
    after = "del batch\nprint(i, multiprocessing.active_children())"
    notebook = new_notebook(cells=[new_code_cell(code), new_code_cell(after)])
    NotebookClient(notebook, timeout=120, kernel_name="python3").execute()
    pids, last = ("".join(out["text"] for out in cell["outputs"]) for cell in notebook.cells)
    assert len(pids.split()) == 2
    assert last == "50 []\n"
