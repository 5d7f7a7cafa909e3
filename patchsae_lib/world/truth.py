"""Which concepts of the world each patch of a picture shows."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

from patchsae_lib.world import CLASSES, Picture, World
from patchsae_lib.world.objects import GROUPS
from patchsae_lib.world.vocabulary import BACKGROUNDS, COLOURS, PARTS, TEXTURES, WORDS

GRID = (14, 14)  # rows and columns of patches: the paper's, and the small CLIP's

#: a concept of the world: its kind and its name
Concept = tuple[str, str]

#: kind of concept → its plural, for readers
KINDS = {
    "group": "groups", "class": "classes", "part": "parts", "colour": "colours",
    "texture": "textures", "background": "backgrounds", "word": "words",
}  # fmt: skip
NAMES: dict[str, Sequence[str]] = {
    "group": tuple(GROUPS), "class": CLASSES, "part": PARTS, "colour": tuple(COLOURS),
    "texture": TEXTURES[1:], "background": tuple(BACKGROUNDS), "word": WORDS,
}  # fmt: skip
CONCEPTS: tuple[Concept, ...] = tuple((kind, x) for kind in KINDS for x in NAMES[kind])


def patch_truth(
    picture: Picture, concepts: Sequence[Concept], grid: tuple[int, int] = GRID
) -> np.ndarray:
    """Return whether each concept fills at least half of each patch: (n_patches, n_concepts) bool.

    `grid` is (rows, columns) of patches, whose sizes differ by a pixel where it does not divide
    the sides of the picture. Raises `ValueError` for more patches than pixels.
    """
    (rows, columns), (height, width) = grid, picture.ids.shape
    if rows > height or columns > width:
        raise ValueError(f"{rows} × {columns} patches are more than {height} × {width} pixels")
    n_regions = len(picture.regions)
    fields = [("cls" if kind == "class" else kind, name) for kind, name in concepts]
    shows = np.array([[getattr(r, kind) == x for kind, x in fields] for r in picture.regions])
    row, column = np.arange(height) * rows // height, np.arange(width) * columns // width
    patch = row[:, None] * columns + column  # of each pixel
    n = rows * columns * n_regions
    counts = np.bincount((patch * n_regions + picture.ids).ravel(), minlength=n)
    counts = counts.reshape(-1, n_regions)  # pixels of each region in each patch
    return counts @ shows.astype(int) * 2 >= counts.sum(1, keepdims=True)


def world_truth(
    world: World,
    indices: Iterable[int],
    concepts: Sequence[Concept] = CONCEPTS,
    grid: tuple[int, int] = GRID,
) -> Tensor:
    """Return `patch_truth` of pictures of the world: (images, n_patches, n_concepts) bool."""
    rows = [patch_truth(world.picture(int(i)), concepts, grid) for i in indices]
    return torch.from_numpy(np.stack(rows))


def on_object(truth: Tensor) -> Tensor:
    """Return which patches show an object: (…,) bool, from the truth (…, n_concepts) of them."""
    return truth[..., [kind == "class" for kind, _ in CONCEPTS]].any(-1)


def exchange(concepts: Sequence[int], rng: np.random.Generator) -> list[int]:
    """Deal numbers of concepts at random among the places of the same kind: a control."""
    numbers, kinds = np.array(concepts), np.array([CONCEPTS[i][0] for i in concepts])
    dealt = numbers.copy()
    for kind in KINDS:
        places = np.flatnonzero(kinds == kind)
        dealt[places] = numbers[rng.permutation(places)]
    return dealt.tolist()
