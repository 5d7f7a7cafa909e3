"""Where pictures come from: one function, one return type.

`world` and `world:TASK` are rendered; `folder:PATH` and `torchvision:NAME` are the user's own.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
import torchvision.datasets
from PIL import Image
from torchvision.datasets import ImageFolder

from patchsae_lib.world import TASKS, World


class Pictures(Protocol):
    """Labelled pictures with random access."""

    class_names: tuple[str, ...]

    def __len__(self) -> int: ...

    def label(self, index: int) -> int:
        """The class of a picture, an index into `class_names`."""

    def batch(self, indices: Sequence[int]) -> torch.Tensor:
        """(len(indices), 3, h, w) uint8."""


class Files:
    """Pictures in a torchvision data set with `samples`, as squares of `size` pixels."""

    def __init__(self, data: ImageFolder, split: str, n: int, size: int) -> None:
        self.data, self.size = data, size
        self.class_names = tuple(c.replace("_", " ") for c in data.classes)
        order = np.random.default_rng(0).permutation(len(data.samples))
        held_out = max(1, len(order) // 5)
        chosen = order[:held_out] if split == "test" else order[held_out:]
        self.order = chosen[:n] if n else chosen

    def __len__(self) -> int:
        return len(self.order)

    def label(self, index: int) -> int:
        return int(self.data.samples[self.order[index]][1])

    def batch(self, indices: Sequence[int]) -> torch.Tensor:
        return torch.stack([self._square(int(i)) for i in indices])

    def _square(self, index: int) -> torch.Tensor:
        path = self.data.samples[self.order[index]][0]
        with Image.open(path) as image:
            side = min(image.size)
            left, top = (image.width - side) // 2, (image.height - side) // 2
            box = (left, top, left + side, top + side)
            square = image.convert("RGB").resize(
                (self.size, self.size), Image.Resampling.BICUBIC, box
            )
        return torch.from_numpy(np.array(square)).permute(2, 0, 1)

    @cached_property
    def labels(self) -> torch.Tensor:
        return torch.tensor([self.label(i) for i in range(len(self))])


def open_pictures(spec: str, split: str = "train", n: int = 0, size: int = 224) -> Pictures:
    """Open the pictures that `spec` names.

    - `world`, `world:TASK`: the embedded world (`n` pictures; 0: 6,000).
    - `folder:PATH`: a folder with one sub-folder a class; a fixed fifth is the test split.
    - `torchvision:NAME`: a torchvision data set already on disk in `$TORCHVISION_DATA` (by
      default `./pictures`); nothing is downloaded.

    `size` is the side of the squares that files are resized to; raises `ValueError` for an unknown
    spec and `FileNotFoundError` for a missing folder.
    """
    kind, _, name = spec.partition(":")
    if kind == "world":
        return World(name or "world", split, n or 6000)
    if kind == "folder":
        path = Path(name).expanduser()
        if not path.is_dir():
            raise FileNotFoundError(f"no folder {path}: folder:PATH wants one sub-folder a class")
        try:
            return Files(ImageFolder(str(path)), split, n, size)
        except FileNotFoundError as error:
            raise FileNotFoundError(
                f"{path} has no class: folder:PATH wants one sub-folder of pictures a class"
            ) from error
    raise ValueError(
        f"unknown pictures {spec!r}: give world, world:TASK (TASK one of {', '.join(TASKS)}) "
        "or folder:PATH"
    )
