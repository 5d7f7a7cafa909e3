"""Where pictures come from: one function, one return type.

`world` and `world:TASK` are rendered; `folder:PATH` and `torchvision:NAME` are the user's own.
"""

from __future__ import annotations

import inspect
import os
import random
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np
import open_clip
import torch
from PIL import Image, ImageOps
from torchvision import datasets

from patchsae_lib.world import World

TEMPLATE = "a photo of a {}."  # MaPLe's, for every data set


class Pictures(Protocol):
    """Labelled pictures with random access."""

    class_names: tuple[str, ...]

    def __len__(self) -> int: ...

    def label(self, index: int) -> int:
        """The class of a picture, an index into `class_names`."""

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


def labels_of(pictures: Pictures) -> torch.Tensor:
    """(pictures,) int64: the class of each."""
    return torch.tensor([pictures.label(i) for i in range(len(pictures))])


def world_of(pictures: Pictures) -> World | None:
    """The embedded world that these are pictures of, if they are."""
    pictures = pictures.pictures if isinstance(pictures, ReadOnce) else pictures
    return pictures if isinstance(pictures, World) else None


def captions_of(pictures: Pictures) -> list[str]:
    """One text a picture: its caption if it has one, else the name of its class."""
    if world := world_of(pictures):
        return [world.caption(i) for i in range(len(world))]
    names = pictures.class_names
    return [TEMPLATE.format(names[pictures.label(i)]) for i in range(len(pictures))]


def template_of(pictures: Pictures) -> str:
    """A sentence with {} for the name of a class: that of a task of the world, else MaPLe's."""
    world = world_of(pictures)
    return world.task.templates[0] if world else TEMPLATE


class Files:
    """Pictures of a torchvision data set in a fixed random order, as squares of `size` pixels.

    `part`: a fixed fifth is "test", the rest "train"; "" takes all. `n`: at most so many; 0: all.
    """

    def __init__(self, data: Any, part: str, n: int, size: int) -> None:
        self.data, self.size, self.labels = data, size, _labels(data)
        self.class_names = _class_names(data, self.labels)
        rng = random.Random(0)  # random() keeps its numbers for ever, shuffle() need not
        keys = [rng.random() for _ in self.labels]
        order = sorted(range(len(keys)), key=keys.__getitem__)
        n_test = max(1, len(order) // 5)
        order = {"": order, "test": order[:n_test], "train": order[n_test:]}[part]
        if not order:
            raise ValueError(f"{data.root} has too few pictures to hold some out: {len(keys)}")
        self.order = order[: n or None]

    def __len__(self) -> int:
        return len(self.order)

    def label(self, index: int) -> int:
        """The class of a picture, an index into `class_names`."""
        return self.labels[self.order[index]]

    def batch(self, indices: Sequence[int]) -> torch.Tensor:
        """(len(indices), 3, size, size) uint8, cut from the middle of the pictures."""
        size, bicubic = (self.size, self.size), Image.Resampling.BICUBIC
        images = (self.data[self.order[int(i)]][0].convert("RGB") for i in indices)
        squares = [np.array(ImageOps.fit(image, size, bicubic)) for image in images]
        return torch.from_numpy(np.stack(squares)).permute(0, 3, 1, 2)


def open_pictures(spec: str, split: str = "train", n: int = 0, size: int = 224) -> Pictures:
    """Open the pictures that `spec` names.

    - `world`, `world:TASK`: the embedded world (`n` pictures; 0: 6,000).
    - `folder:PATH`: a folder with one sub-folder a class; a fixed fifth is the test split.
    - `torchvision:NAME`: a torchvision data set already on disk in `$TORCHVISION_DATA` (by
      default `./pictures`), with its own splits or else a fixed fifth; nothing is downloaded.

    `n` limits the pictures (0: all), `size` is the side of the squares that files are resized to.
    Raises `ValueError` for what it does not know, `FileNotFoundError` where nothing is and, on
    reading, `OSError` for a broken file.
    """
    kind, _, name = spec.partition(":")
    if kind not in ("world", "folder", "torchvision"):
        why = "not supported yet" if kind in ("hf", "wds") else "unknown"
        known = "world, world:TASK, folder:PATH or torchvision:NAME"
        raise ValueError(f"pictures {spec!r} are {why}: give {known}")
    if n < 0:
        raise ValueError(f"{n} pictures of {spec}: give how many, or 0 for all")
    if kind == "world":
        return World(name or "world", split, n or 6000)
    if split not in ("train", "test"):
        raise ValueError(f"no split {split!r} of {spec}: give train or test")
    if kind == "torchvision":
        return Files(*_torchvision(name, split), n, size)
    try:  # sorted by the names of classes and files
        data = datasets.ImageFolder(str(Path(name).expanduser()), loader=read_image)
    except OSError as error:
        raise FileNotFoundError(
            f"{spec} wants one sub-folder of pictures a class: {error}"
        ) from error
    return Files(data, split, n, size)


def read_image(path: str | Path | IO[bytes]) -> Image.Image:
    """A picture in RGB, the right way up; `OSError` naming the file if it is broken or huge."""
    try:
        with Image.open(path) as image:
            if image.width * image.height > (Image.MAX_IMAGE_PIXELS or float("inf")):
                raise ValueError(f"{image.width} × {image.height} pixels are too many")
            return ImageOps.exif_transpose(image).convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise OSError(f"{path} cannot be read as a picture: {error}") from error


def _torchvision(name: str, split: str) -> tuple[Any, str]:
    """The data set `name`, and the part of it to take: "" if it is the split already."""
    if name not in datasets.__all__:
        raise ValueError(f"torchvision has no data set {name!r} (it has CIFAR10, for example)")
    takes = inspect.signature(make := getattr(datasets, name)).parameters
    root = os.environ.get("TORCHVISION_DATA") or "pictures"
    options: dict[str, Any] = {"download": False} if "download" in takes else {}
    if "loader" in takes or name == "ImageNet":  # which hands it on to ImageFolder
        options["loader"] = read_image
    if "train" in takes:
        options["train"] = split == "train"
    elif "split" in takes and split == "test":  # the default is train, or trainval, or ...
        no_test_labels = ("ImageNet", "Imagenette", "Places365")
        options["split"] = "val" if name in no_test_labels else "test"
    try:
        return make(root, **options), "" if {"train", "split"} & set(takes) else split
    except (RuntimeError, OSError, ImportError, TypeError, ValueError) as error:
        what = f"no {name} in {root} (set TORCHVISION_DATA; nothing is downloaded)"
        raise FileNotFoundError(f"{what}: {error}") from error


def _labels(data: Any) -> list[int]:
    """The class of every picture, without reading one, wherever the data set keeps them."""
    for name in ("targets", "labels", "_labels", "y"):
        if hasattr(data, name):
            return [int(label) for label in getattr(data, name)]
    if hasattr(data, "_samples"):
        return [int(label) for _, label in data._samples]
    raise ValueError(f"{type(data).__name__} has no class labels: give one for classification")


def _class_names(data: Any, labels: list[int]) -> tuple[str, ...]:
    """The names a data set has for its classes, or else their numbers."""
    names = getattr(data, "classes", None) or getattr(data, "categories", None)
    if isinstance(data, datasets.ImageNet) and len(data.classes) == 1000:
        names = open_clip.IMAGENET_CLASSNAMES  # CLIP's, which tell WordNet's two cranes apart
    names = names or [str(i) for i in range(max(labels, default=-1) + 1)]
    return tuple((n if isinstance(n, str) else n[0]).replace("_", " ") for n in names)
