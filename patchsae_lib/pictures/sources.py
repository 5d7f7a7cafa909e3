"""Pictures of any kind with random access: `open_pictures` is the way in.

- `world`, `world:TASK`: the embedded world, rendered.
- `folder:PATH`: a folder with one sub-folder per class, or with pictures that have no class; or
  with `train` and `test` (or `val`) folders of that kind. `folders` says more.
- `torchvision:NAME`: a torchvision data set already on disk in `$TORCHVISION_DATA` (by default
  `./pictures`); nothing is downloaded.
- `hf:NAME` or `hf:NAME:CONFIG`: a data set of the Hugging Face Hub, streamed once and kept.
- `wds:PATTERN`: webdataset shards on disk, e.g. `wds:/data/{split}-{000..099}.tar`.

Where a source has no test split, a fixed fifth of its pictures is held out.
"""

from __future__ import annotations

import hashlib
import os
import random
import warnings
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache, cached_property
from itertools import chain, islice
from typing import Protocol

import torch
from tqdm import tqdm

from patchsae_lib.pictures.decoding import Item, read_image, square
from patchsae_lib.pictures.folders import folder
from patchsae_lib.pictures.huggingface import hf
from patchsae_lib.pictures.listing import LENIENT, NUMBER, Source, spoken, stamps
from patchsae_lib.pictures.torchvision_sets import torchvision
from patchsae_lib.pictures.webdataset import wds
from patchsae_lib.world import World

TEMPLATE = "a photo of a {}."  # MaPLe's, for every data set
N_WORLD = 6000  # pictures of the world if no number is given
CHECKED = 100_000  # fewer pictures are tried first, if nothing else is asked for
SOURCES = {"folder": folder, "torchvision": torchvision, "wds": wds}


class Pictures(Protocol):
    """Pictures with random access; without classes, `class_names` is empty."""

    class_names: tuple[str, ...]

    def __len__(self) -> int: ...

    def label(self, index: int) -> int:
        """Return the class of a picture, an index into `class_names`; −1: none."""

    def batch(self, indices: Sequence[int]) -> torch.Tensor:
        """Return pictures as (len(indices), 3, h, w) uint8."""


def open_pictures(
    spec: str, split: str = "train", n: int = 0, size: int = 224, check: bool | None = True
) -> Pictures:
    """Open the `train` or `test` split of the pictures that `spec` names (see the module).

    `n` is the largest number of pictures (0: all; of the world, 6,000). Files become squares of
    `size` pixels. Each is tried first, quickly, and left out with a warning if it cannot be read;
    with `check=False` it is kept, and `batch` raises `OSError` for it; with None, fewer than
    100,000 are tried. Raises `ValueError` for an unknown spec or split, `ImportError` for a
    missing package, and `FileNotFoundError` if there are no pictures.
    """
    kind, name = _parse(spec, split, n)
    if kind == "world":
        return World(name or "world", split, n or N_WORLD)
    source = hf(name, split, n) if kind == "hf" else SOURCES[kind](name, split)
    try:
        pictures = Files(source, "" if source.divided else split, n, size, check)
    except ValueError as error:
        raise ValueError(f"{spec}: {error}") from None
    for note in _notes(pictures):
        warnings.warn(f"{spec}: {note}", stacklevel=2)
    return pictures


def _notes(pictures: Files) -> Iterator[str]:
    """Say what was left out of pictures, and which of their classes have the same name."""
    if n := len(pictures.skipped):
        yield f"{n} pictures left out: {pictures.skipped[0]}{'; ...' if n > 1 else ''}"
    yield from pictures.source.notes
    if equal := [name for name in pictures.class_names if NUMBER.search(name)]:
        yield f"{len(equal)} class names are those of other classes; numbered: {equal[0]!r}, ..."


def _parse(spec: str, split: str, n: int) -> tuple[str, str]:
    """Return the kind and the name in a spec, if such pictures can be opened."""
    kind, colon, name = spec.partition(":")
    if kind not in ("world", "hf", *SOURCES):
        raise ValueError(
            f"pictures {spec!r} are unknown: give world, world:TASK, folder:PATH, "
            "torchvision:NAME, hf:NAME or wds:PATTERN"
        )
    if not name and (colon or kind != "world"):
        raise ValueError(f"{spec!r} does not say which pictures: give {kind}:PATH or {kind}:NAME")
    if n < 0:
        raise ValueError(f"{n} pictures of {spec}: give how many, or 0 for all")
    if kind != "world" and split not in ("train", "test"):
        raise ValueError(f"no split {split!r} of {spec}: give train or test")
    return kind, name


class Files:
    """Pictures of a source in a fixed random order, as squares of `size` pixels.

    `part` is "test" (a fixed fifth of them), "train" (the rest), or "" for all; `n` the largest
    number of pictures (0: all). Those that cannot be read are left out, and `skipped` says why;
    with `check=False` they are kept, and reading one is an `OSError`.
    """

    def __init__(
        self, source: Source, part: str, n: int, size: int, check: bool | None = True
    ) -> None:
        self.source, self.size, self.class_names = source, size, source.class_names
        order = _part_of(_shuffled(len(source.labels)), part)
        self.skipped = list(source.skipped)
        if check is None:
            check = min(len(order), n or len(order)) < CHECKED
        self.order = list(islice(self._readable(order) if check else order, n or None))
        if not self.order:
            raise ValueError(f"no picture can be read, of {len(order)}: {self.skipped[-1]}")

    def _readable(self, order: Sequence[int]) -> Iterable[int]:
        """Yield the pictures that can be read; note in `skipped` why the others cannot."""
        with ThreadPoolExecutor() as pool, tqdm(desc="pictures", delay=3, leave=False) as bar:
            for start in range(0, len(order), 64):
                chunk = order[start : start + 64]
                for i, fault in zip(chunk, pool.map(self._fault, chunk), strict=True):
                    bar.update()
                    if fault:
                        self.skipped.append(fault)
                    else:
                        yield i

    def _fault(self, i: int) -> str:
        try:
            item = self.source.item(i)
            if isinstance(item, str) and os.path.isfile(item):
                return _fault_of_file(item, os.stat(item).st_mtime_ns)
        except OSError as error:
            return str(error)
        return _fault_of(item)

    @cached_property
    def digest(self) -> str:
        """A hash of what tells these pictures from others: their order and classes, and the names,
        sizes and times of the files that hold them, and where in these each lies."""
        digest = hashlib.sha256(repr((self.class_names, self.order)).encode(*LENIENT))
        labels = map(str, self.source.labels)
        for line in chain(labels, stamps(self.source.files), map(repr, self.source.places)):
            digest.update(line.encode(*LENIENT))
        return digest.hexdigest()

    def __len__(self) -> int:
        return len(self.order)

    def label(self, index: int) -> int:
        """Return the class of a picture, an index into `class_names`; −1: none."""
        return self.source.labels[self.order[index]]

    def batch(self, indices: Sequence[int]) -> torch.Tensor:
        """Return the middle squares of pictures, (len(indices), 3, size, size) uint8."""
        items = (self.source.item(self.order[int(i)]) for i in indices)
        return torch.stack([square(read_image(item), self.size) for item in items])


def _shuffled(n: int) -> list[int]:
    rng = random.Random(0)  # random() keeps its numbers for ever, shuffle() need not
    keys = [rng.random() for _ in range(n)]
    return sorted(range(n), key=keys.__getitem__)


def _part_of(order: list[int], part: str) -> list[int]:
    """Return the fixed fifth that is the test split, the rest of the pictures, or all ("")."""
    n_test = max(1, len(order) // 5)
    rows = {"": order, "test": order[:n_test], "train": order[n_test:]}[part]
    if not rows:
        raise ValueError(f"too few pictures to hold some out: {len(order)}")
    return rows


def _fault_of(item: Item) -> str:
    """Return why an image cannot be read, or nothing."""
    try:
        read_image(item, fast=True)
    except OSError as error:
        return str(error)
    return ""


@cache  # a notebook opens the same pictures several times
def _fault_of_file(path: str, _changed: int) -> str:
    return _fault_of(path)


# --- views -------------------------------------------------------------------------------------


class ReadOnce:
    """Pictures that stay in memory once they are read."""

    keeps = True

    def __init__(self, pictures: Pictures) -> None:
        self.pictures, self.class_names = pictures, pictures.class_names
        self._kept: dict[int, torch.Tensor] = {}

    def __len__(self) -> int:
        return len(self.pictures)

    def label(self, index: int) -> int:
        """Return the class of a picture, an index into `class_names`; −1: none."""
        return self.pictures.label(index)

    def batch(self, indices: Sequence[int]) -> torch.Tensor:
        """Return pictures as (len(indices), 3, h, w) uint8."""
        missing = [i for i in dict.fromkeys(indices) if i not in self._kept]
        if missing:
            self._kept |= zip(missing, self.pictures.batch(missing), strict=True)
        return torch.stack([self._kept[i] for i in indices])


class Subset:
    """Chosen rows of pictures, in order, with their own classes unless others are given.

    `rows` are indices into `pictures` (None: all). `labels[i]` is the class of the i-th chosen
    picture, an index into `class_names`; −1: none. Raises `ValueError` if their numbers differ.
    """

    def __init__(
        self,
        pictures: Pictures,
        rows: Sequence[int] | None = None,
        labels: Sequence[int] | None = None,
        class_names: Sequence[str] | None = None,
    ) -> None:
        self.pictures = pictures
        self.rows = range(len(pictures)) if rows is None else rows
        self.labels = [pictures.label(row) for row in self.rows] if labels is None else labels
        self.class_names = pictures.class_names if class_names is None else tuple(class_names)
        if len(self.labels) != len(self.rows):
            raise ValueError(f"{len(self.labels)} labels for {len(self.rows)} pictures")

    @property
    def keeps(self) -> bool:
        """Whether the process that reads pictures has them when they are read again."""
        return getattr(self.pictures, "keeps", False)

    def __len__(self) -> int:
        return len(self.rows)

    def label(self, index: int) -> int:
        """Return the class of a picture, an index into `class_names`; −1: none."""
        return self.labels[index]

    def batch(self, indices: Sequence[int]) -> torch.Tensor:
        """Return pictures as (len(indices), 3, h, w) uint8."""
        return self.pictures.batch([self.rows[i] for i in indices])


# --- what pictures are of ----------------------------------------------------------------------


def labels_of(pictures: Pictures) -> torch.Tensor:
    """Return the class of every picture, (pictures,) int64; −1: none."""
    return torch.tensor([pictures.label(i) for i in range(len(pictures))])


def world_of(pictures: Pictures) -> World | None:
    """Return the embedded world if these are its pictures, read once or not; None for a subset."""
    pictures = pictures.pictures if isinstance(pictures, ReadOnce) else pictures
    return pictures if isinstance(pictures, World) else None


def unwrapped(pictures: Pictures) -> tuple[Pictures, Sequence[int]]:
    """Return the pictures below all views of them, and the numbers that these have there."""
    rows: Sequence[int] = range(len(pictures))
    while isinstance(pictures, Subset | ReadOnce):
        rows = [pictures.rows[i] for i in rows] if isinstance(pictures, Subset) else rows
        pictures = pictures.pictures
    return pictures, rows


def repeated(pixels: torch.Tensor, pictures: Pictures, n: int) -> tuple[int, int]:
    """Count which of pictures (b, 3, h, w) are, pixel for pixel, among `n` of others, drawn at
    random (all, if there are fewer). Returns the count, and how many were drawn."""
    rows = torch.randperm(len(pictures), generator=torch.Generator().manual_seed(0))[:n].tolist()
    batches = (pictures.batch(rows[i : i + 64]) for i in range(0, len(rows), 64))
    known = {hash(x.numpy().tobytes()) for batch in batches for x in batch}
    return sum(hash(x.numpy().tobytes()) in known for x in pixels), len(rows)


def captions_of(pictures: Pictures) -> list[str]:
    """Return a text for every picture: its caption, else the name of its class, else "picture"."""
    below, rows = unwrapped(pictures)
    if isinstance(below, World):
        return [below.caption(i) for i in rows]
    texts = [TEMPLATE.format(name) for name in spoken(pictures.class_names)]
    labels = labels_of(pictures).tolist()
    return [texts[label] if label >= 0 else TEMPLATE.format("picture") for label in labels]


def template_of(pictures: Pictures) -> str:
    """Return a prompt with {} for the class name: that of the world's task, else MaPLe's."""
    world = world_of(pictures)
    return world.task.templates[0] if world else TEMPLATE
