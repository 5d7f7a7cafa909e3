"""Pictures in batches, which other processes decode while the model computes.

The batches are a `DataLoader`'s. Its processes are forked: a `spawn` or `forkserver` one would
import torch first (2 s each) and the user's script again, and copy the list of pictures. Of the
hazards of a fork beside threads none applies: they decode, with one thread, and touch no model.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Generator, Iterator, Sequence
from time import perf_counter

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

from patchsae_lib.pictures.naming import read_pictures
from patchsae_lib.pictures.sources import Pictures

Batch = tuple[list[int], Tensor]  # indices, and their pictures
WORTH = 2.0  # seconds of decoding from which on processes are started for it
MOST = 16  # processes, two batches ahead each
BLOCKS = 4  # of 16 MB that Pillow keeps instead of asking the system for each large picture again


def read_batches(
    pictures: Pictures,
    parts: Sequence[Sequence[int]],
    skipped: list[int] | None = None,
    title: str = "",
) -> Generator[Batch]:
    """Read the pictures of each part, in order, whichever process reads them.

    Yields the indices of those that can be read, and their pixels (b, 3, h, w) uint8, in pinned
    memory where there is a GPU. The others raise `OSError`, or are added to `skipped` if it is
    given. With a `title` there is a progress bar.
    """
    hidden = {} if title else {"disable": True}  # else the variable TQDM_DISABLE decides
    with tqdm(total=sum(map(len, parts)), desc=title, unit=" pictures", **hidden) as bar:
        for readable, images, unreadable in _batches(pictures, parts):
            if unreadable and skipped is None:
                pictures.batch(unreadable[:1])  # which raises what is wrong with it
            elif skipped is not None:
                skipped += unreadable
            yield readable, images
            bar.update(len(readable) + len(unreadable))


def _batches(
    pictures: Pictures, parts: Sequence[Sequence[int]]
) -> Iterator[tuple[list[int], Tensor, list[int]]]:
    if not parts:
        return
    reader, start = _Reader(pictures), perf_counter()
    first = reader[parts[0]]
    seconds = (perf_counter() - start) * (len(parts) - 1)
    is_worth = seconds > WORTH and not getattr(pictures, "keeps", False)
    n = _n_workers(first[1].nbytes) if is_worth else 0
    ahead = iter(
        DataLoader(
            reader,  # type: ignore[arg-type]  # all that a Dataset needs is __getitem__
            batch_size=None,
            sampler=parts[1:],
            collate_fn=tuple,
            num_workers=n,
            worker_init_fn=_keep_blocks,
            multiprocessing_context="fork" if n else None,
            pin_memory=torch.cuda.is_available(),
            generator=torch.Generator(),  # or it would draw from everybody's
        )
    )
    yield first  # when the others are under way
    yield from ahead


class _Reader:
    """Batches of pictures, by their indices."""

    def __init__(self, pictures: Pictures) -> None:
        self.pictures = pictures

    def __getitem__(self, indices: Sequence[int]) -> tuple[list[int], Tensor, list[int]]:
        skipped: list[int] = []
        return *read_pictures(self.pictures, indices, skipped), skipped


def _n_workers(size: int) -> int:
    """Return how many processes read batches of `size` bytes: one for each of this process's
    cores, as long as two batches of each fill a quarter of the memory they are handed over in."""
    if sys.platform != "linux":  # macOS's own libraries do not survive a fork
        return 0
    cores = len(os.sched_getaffinity(0)) // int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    room = shutil.disk_usage("/dev/shm").free // (8 * max(1, size))
    return min(max(1, cores), MOST, room)


def _keep_blocks(_number: int) -> None:
    Image.core.set_blocks_max(BLOCKS)
