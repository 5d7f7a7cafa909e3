"""Where pictures come from: one function, one return type.

`world` and `world:TASK` are rendered; `folder:PATH`, `torchvision:NAME`, `hf:NAME` and
`wds:PATTERN` are the user's own.
"""

from __future__ import annotations

import os
import random
import warnings
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import islice
from typing import Protocol

import numpy as np
import torch
from PIL import Image, ImageOps
from tqdm import tqdm

from patchsae_lib import sources
from patchsae_lib.sources import Item, Source
from patchsae_lib.world import World

TEMPLATE = "a photo of a {}."  # MaPLe's, for every data set
# Pillow would run Ghostscript on an EPS file that is called .jpg.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF", "JPEG2000")


class Pictures(Protocol):
    """Pictures with random access; those without labels have no `class_names`."""

    class_names: tuple[str, ...]

    def __len__(self) -> int: ...

    def label(self, index: int) -> int:
        """The class of a picture, an index into `class_names`; −1: none."""

    def batch(self, indices: Sequence[int]) -> torch.Tensor:
        """(len(indices), 3, h, w) uint8."""


class ReadOnce:
    """Pictures that are kept in memory, once read, for the next one who asks."""

    def __init__(self, pictures: Pictures) -> None:
        self.pictures, self.class_names = pictures, pictures.class_names
        self._kept: dict[int, torch.Tensor] = {}

    def __len__(self) -> int:
        return len(self.pictures)

    def label(self, index: int) -> int:
        """The class of a picture, an index into `class_names`."""
        return self.pictures.label(index)

    def batch(self, indices: Sequence[int]) -> torch.Tensor:
        """(len(indices), 3, h, w) uint8."""
        missing = [i for i in dict.fromkeys(indices) if i not in self._kept]
        if missing:
            self._kept |= zip(missing, self.pictures.batch(missing), strict=True)
        return torch.stack([self._kept[i] for i in indices])


class Relabelled:
    """Pictures with other classes than their own: `labels[i]` of `class_names`."""

    def __init__(
        self, pictures: Pictures, labels: Sequence[int], class_names: Sequence[str]
    ) -> None:
        self.pictures, self.labels, self.class_names = pictures, labels, tuple(class_names)

    def __len__(self) -> int:
        return len(self.pictures)

    def label(self, index: int) -> int:
        """The class of a picture, an index into `class_names`."""
        return self.labels[index]

    def batch(self, indices: Sequence[int]) -> torch.Tensor:
        """(len(indices), 3, h, w) uint8."""
        return self.pictures.batch(indices)


def labels_of(pictures: Pictures) -> torch.Tensor:
    """(pictures,) int64: the class of each."""
    return torch.tensor([pictures.label(i) for i in range(len(pictures))])


def world_of(pictures: Pictures) -> World | None:
    """The embedded world that these are pictures of, if they are."""
    pictures = pictures.pictures if isinstance(pictures, ReadOnce) else pictures
    return pictures if isinstance(pictures, World) else None


def captions_of(pictures: Pictures) -> list[str]:
    """One text a picture: its caption if it has one, else the name of its class (or "picture")."""
    if world := world_of(pictures):
        return [world.caption(i) for i in range(len(world))]
    names = *pictures.class_names, "picture"  # which is number −1
    return [TEMPLATE.format(names[pictures.label(i)]) for i in range(len(pictures))]


def template_of(pictures: Pictures) -> str:
    """A sentence with {} for the name of a class: that of a task of the world, else MaPLe's."""
    world = world_of(pictures)
    return world.task.templates[0] if world else TEMPLATE


class Files:
    """Pictures of a source in a fixed random order, as squares of `size` pixels.

    `part`: a fixed fifth is "test", the rest "train"; "" takes all. `n`: at most so many; 0: all.
    Those that cannot be read are left out, with the reason, in `skipped`; with `check=False` that
    is not tried, and reading one is an `OSError`.
    """

    def __init__(self, source: Source, part: str, n: int, size: int, check: bool = True) -> None:
        self.source, self.size, self.class_names = source, size, source.class_names
        rng = random.Random(0)  # random() keeps its numbers for ever, shuffle() need not
        keys = [rng.random() for _ in source.labels]
        order = sorted(range(len(keys)), key=keys.__getitem__)
        n_test = max(1, len(order) // 5)
        order = {"": order, "test": order[:n_test], "train": order[n_test:]}[part]
        if not order:
            raise ValueError(f"too few pictures to hold some out: {len(keys)}")
        self.skipped: list[str] = []
        self.order = list(islice(self._sound(order), n or None)) if check else order[: n or None]
        if not self.order:
            raise ValueError(f"no picture can be read, of {len(order)}: {self.skipped[0]}")

    def _sound(self, order: list[int]) -> Iterable[int]:
        """Those of the pictures that can be read; of the others `skipped` says why not."""
        with ThreadPoolExecutor() as pool, tqdm(desc="pictures", delay=3, leave=False) as bar:
            for start in range(0, len(order), 64):
                some = order[start : start + 64]
                for i, fault in zip(some, pool.map(self._fault, some), strict=True):
                    bar.update()
                    if fault:
                        self.skipped.append(fault)
                    else:
                        yield i

    def _fault(self, i: int) -> str:
        try:
            item = self.source.item(i)
            if isinstance(item, str) and os.path.isfile(item):
                return _fault_of(item, os.stat(item).st_mtime_ns)
            read_image(item, small=True)
        except OSError as error:
            return str(error)
        return ""

    def __len__(self) -> int:
        return len(self.order)

    def label(self, index: int) -> int:
        """The class of a picture, an index into `class_names`; −1: none."""
        return self.source.labels[self.order[index]]

    def batch(self, indices: Sequence[int]) -> torch.Tensor:
        """(len(indices), 3, size, size) uint8, cut from the middle of the pictures."""
        items = (self.source.item(self.order[int(i)]) for i in indices)
        return torch.stack([square(read_image(item), self.size) for item in items])


@cache  # a notebook opens the same pictures several times
def _fault_of(path: str, _changed: int) -> str:
    try:
        read_image(path, small=True)
    except OSError as error:
        return str(error)
    return ""


def open_pictures(
    spec: str, split: str = "train", n: int = 0, size: int = 224, check: bool = True
) -> Pictures:
    """Open the pictures that `spec` names.

    - `world`, `world:TASK`: the embedded world (`n` pictures; 0: 6,000).
    - `folder:PATH`: a folder with one sub-folder a class, or with pictures that have none; or with
      `train` and `test` (or `val`) folders of that kind.
    - `torchvision:NAME`: a torchvision data set already on disk in `$TORCHVISION_DATA` (by
      default `./pictures`); nothing is downloaded.
    - `hf:NAME` or `hf:NAME:CONFIG`: a data set of the Hugging Face Hub, streamed once and kept.
    - `wds:PATTERN`: webdataset shards on disk, e.g. `wds:/data/{split}-{000..099}.tar`.

    Where a source has no test split a fixed fifth of its pictures is that. `n` limits the pictures
    (0: all), `size` is the side of the squares that files are resized to. Every file is tried
    first, quickly, and a warning counts those that cannot be read and are left out; `check=False`
    is for a pass that skips them itself.

    Raises `ValueError` for what it does not know, `ImportError` naming a package that is missing,
    and `FileNotFoundError` where nothing is.
    """
    kind, _, name = spec.partition(":")
    if kind not in ("world", "folder", "torchvision", "hf", "wds"):
        raise ValueError(
            f"pictures {spec!r} are unknown: give world, world:TASK, folder:PATH, "
            "torchvision:NAME, hf:NAME or wds:PATTERN"
        )
    if n < 0:
        raise ValueError(f"{n} pictures of {spec}: give how many, or 0 for all")
    if kind == "world":
        return World(name or "world", split, n or 6000)
    if split not in ("train", "test"):
        raise ValueError(f"no split {split!r} of {spec}: give train or test")
    source = sources.hf(name, split, n) if kind == "hf" else getattr(sources, kind)(name, split)
    try:
        pictures = Files(source, "" if source.divided else split, n, size, check)
    except ValueError as error:
        raise ValueError(f"{spec}: {error}") from None
    if left_out := pictures.skipped:
        some = "; ".join(left_out[:5]) + ("; ..." if len(left_out) > 5 else "")
        warnings.warn(f"{spec}: {len(left_out)} pictures left out: {some}", stacklevel=2)
    return pictures


def read_image(item: Item, small: bool = False) -> Image.Image:
    """A picture in RGB, the right way up, on white where it is transparent.

    `small`: perhaps at a fraction of its size, where its format makes that quicker. Raises
    `OSError` naming the file if it is broken or has more pixels than Pillow thinks safe.
    """
    name = getattr(item, "name", None) or getattr(item, "filename", None) or item
    try:
        with item if isinstance(item, Image.Image) else Image.open(item, "r", _formats()) as image:
            if image.width * image.height > (Image.MAX_IMAGE_PIXELS or float("inf")):
                raise ValueError(f"{image.width} × {image.height} pixels are too many")
            if small:
                image.draft("RGB", (1, 1))
            return _rgb(ImageOps.exif_transpose(image))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise OSError(f"{name} cannot be read as a picture: {error}") from error


@cache
def _formats() -> list[str]:
    Image.init()
    return [name for name in FORMATS if name in Image.OPEN]  # AVIF is not in every Pillow


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode in ("I", "F"):
        raise ValueError(f"what is white in {image.mode} (32 bits a pixel) is not known")
    if image.mode.startswith("I;16"):  # convert would clip it at 255
        levels = np.asarray(image, dtype=np.float32)
        return Image.fromarray((levels / 257).clip(0, 255).round().astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")


def square(image: Image.Image, size: int) -> torch.Tensor:
    """(3, size, size) uint8, cut from the middle of a picture in RGB."""
    cut = ImageOps.fit(image, (size, size), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(cut)).permute(2, 0, 1)
