"""A source of pictures: which there are and what their classes are, before one of them is read.

One module for each kind lists what is there: `folders`, `torchvision_sets`, `webdataset`,
`huggingface`. Class names and their order are those of the paper's data loaders (CoOp's and
MaPLe's), so that base and novel classes are the same.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from torchvision.datasets.folder import IMG_EXTENSIONS

from patchsae_lib.pictures.decoding import Item

TEST_NAMES = ("test", "val", "validation", "valid")  # of a test split, the best first
SUFFIXES = (*IMG_EXTENSIONS, ".gif", ".avif", ".jp2", ".jfif")


@dataclass(frozen=True)
class Source:
    """Pictures that can be read in any order: `item(i)` is the i-th, `labels[i]` its class.

    A picture without a class has label −1. `divided`: these are the pictures of the split asked
    for; otherwise they are all there are, and a test split is still to be held out. `files` are
    those that hold the pictures, as far as they are known.
    """

    item: Callable[[int], Item]
    labels: Sequence[int]
    class_names: tuple[str, ...]
    divided: bool
    files: Sequence[str | Path] = ()


def readable(names: Sequence[str]) -> tuple[str, ...]:
    """Write class names as in a sentence: spaces for underscores."""
    return tuple(name.replace("_", " ") for name in names)
