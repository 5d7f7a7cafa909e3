"""Which concepts of the world each patch of a picture shows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from patchsae_lib.world import CLASSES, Picture, World
from patchsae_lib.world.canvas import Region
from patchsae_lib.world.objects import GROUPS
from patchsae_lib.world.render import parts_of
from patchsae_lib.world.scene import Thing
from patchsae_lib.world.vocabulary import BACKGROUNDS, COLOURS, PARTS, STYLES, TEXTURES, WORDS

GRID = (14, 14)  # rows and columns of patches: the paper's, and the small CLIP's

#: a concept of the world: its kind and its name
Concept = tuple[str, str]

#: kind of a single concept → its plural, for readers
SINGLE = {
    "group": "groups", "class": "classes", "part": "parts", "colour": "colours",
    "texture": "textures", "background": "backgrounds", "word": "words",
}  # fmt: skip
#: the same of all kinds: `sign` is any written word (the world does not tell letters apart), and
#: the last three are conjunctions: "stem of a mushroom", "cat in a sketch", "red wing"
KINDS = SINGLE | {
    "sign": "signs", "style": "styles", "class part": "parts of a class",
    "class style": "classes in a style", "part colour": "coloured parts",
}  # fmt: skip
PLAIN = ("class", "part", "sign", "class part", "class style", "part colour")  # said without kind
TINTED = ("main", "second", "tint")  # roles of parts that take the colour of their thing
VARIANTS = 6  # of a class, that have all of its parts between them


def _article(noun: str) -> str:
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def concepts_of(region: Region, style: str) -> Iterator[Concept]:
    """Yield all concepts that a region of a picture in this style shows."""
    names = {kind: getattr(region, "cls" if kind == "class" else kind) for kind in SINGLE}
    yield from ((kind, name) for kind, name in {**names, "style": style}.items() if name)
    if region.word:
        yield "sign", "sign"
    if region.cls:
        yield "class part", f"{region.part} of {_article(region.cls)}"
        yield "class style", f"{region.cls} in {_article(style or 'picture')}"
        if region.colour:
            yield "part colour", f"{region.colour} {region.part}"


def _vocabulary() -> dict[str, Sequence[str]]:
    """Return all names of each kind; of conjunctions those that can be drawn."""
    things = [Thing(cls, "", "", 0, 0, 0, variant=v) for cls in CLASSES for v in range(VARIANTS)]
    parts = [(part, thing.cls) for thing in things for part in parts_of(thing)]
    of_class = dict.fromkeys(f"{part.name} of {_article(cls)}" for part, cls in parts)
    tinted = {part.name for part, _ in parts if part.role in TINTED}
    return {
        "group": tuple(GROUPS), "class": CLASSES, "part": PARTS, "colour": tuple(COLOURS),
        "texture": TEXTURES[1:], "background": tuple(BACKGROUNDS), "word": WORDS,
        "sign": ("sign",), "style": STYLES,
        "class part": list(of_class),
        "class style": [f"{cls} in {_article(style)}" for cls in CLASSES for style in STYLES],
        "part colour": [f"{x} {part}" for part in sorted({*tinted, "centre"}) for x in COLOURS],
    }  # fmt: skip


NAMES = _vocabulary()
CONCEPTS: tuple[Concept, ...] = tuple((kind, x) for kind in KINDS for x in NAMES[kind])
N_SINGLE = sum(len(NAMES[kind]) for kind in SINGLE)  # of `CONCEPTS`: they come first


def spoken(concept: Concept) -> str:
    """Say a concept in words.

    >>> spoken(("background", "wall")), spoken(("class part", "stem of a mushroom"))
    ('background wall', 'stem of a mushroom')
    """
    kind, name = concept
    return name if kind in PLAIN else f"{kind} {name}"


@dataclass(frozen=True)
class PatchTruth:
    """What each patch shows, sparse: `shape` (3,), the numbers of images, patches and concepts,
    `first` (images · patches + 1,) int64 and `concept` (entries,) int16. Patch i, numbered through
    all images, shows the concepts `concept[first[i] : first[i + 1]]`."""

    shape: Tensor
    first: Tensor
    concept: Tensor

    @classmethod
    def of_patches(cls, parts: Iterable[np.ndarray]) -> PatchTruth:
        """Take the truth (patches, concepts) bool of each image."""
        columns, counts, shape = [], [], (0, 0)
        for part in parts:
            columns.append(part.nonzero()[1].astype(np.int16))
            counts.append(part.sum(1))
            shape = part.shape
        first = np.concatenate([[0], np.concatenate(counts).cumsum()]).astype(np.int64)
        concept = torch.from_numpy(np.concatenate(columns))
        return cls(torch.tensor([len(counts), *shape]), torch.from_numpy(first), concept)

    def select(self, rows: Tensor) -> PatchTruth:
        """Choose images, in the order given."""
        patch = (rows[:, None] * self.shape[1] + torch.arange(int(self.shape[1]))).flatten()
        counts = self.first.diff()[patch]
        first = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
        start = (self.first[patch] - first[:-1]).repeat_interleave(counts)
        concept = self.concept[torch.arange(int(first[-1])) + start]
        return PatchTruth(torch.tensor([len(rows), *self.shape[1:]]), first, concept)

    def dense(self) -> Tensor:
        """Return the truth (images, patches, concepts) bool."""
        images, patches, concepts = self.shape.tolist()
        truth = torch.zeros(images * patches, concepts, dtype=torch.bool)
        patch = torch.arange(images * patches).repeat_interleave(self.first.diff())
        truth[patch, self.concept.long()] = True
        return truth.view(images, patches, concepts)


def patch_truth(
    picture: Picture, concepts: Sequence[Concept], grid: tuple[int, int] = GRID
) -> np.ndarray:
    """Return whether each concept fills at least half of each patch: (n_patches, n_concepts) bool.

    A conjunction fills what shows both: "red wing" is where a wing is red. `grid` is (rows,
    columns) of patches, whose sizes differ by a pixel where it does not divide the sides of the
    picture. Raises `ValueError` for more patches than pixels.
    """
    (rows, columns), (height, width) = grid, picture.ids.shape
    if rows > height or columns > width:
        raise ValueError(f"{rows} × {columns} patches are more than {height} × {width} pixels")
    n_regions, number = len(picture.regions), {concept: i for i, concept in enumerate(concepts)}
    shows = np.zeros((n_regions, len(concepts)), np.float32)
    for i, region in enumerate(picture.regions):
        shows[i, [number[x] for x in concepts_of(region, picture.style) if x in number]] = 1
    row, column = np.arange(height) * rows // height, np.arange(width) * columns // width
    patch = row[:, None] * columns + column  # of each pixel
    n = rows * columns * n_regions
    counts = np.bincount((patch * n_regions + picture.ids).ravel(), minlength=n)
    counts = counts.reshape(-1, n_regions).astype(np.float32)  # pixels of regions in each patch
    return counts @ shows * 2 >= counts.sum(1, keepdims=True)


def sparse_truth(
    world: World,
    indices: Iterable[int],
    concepts: Sequence[Concept] = CONCEPTS,
    grid: tuple[int, int] = GRID,
) -> PatchTruth:
    """Return `patch_truth` of pictures of the world, sparse."""
    return PatchTruth.of_patches(
        patch_truth(world.picture(int(i)), concepts, grid) for i in indices
    )


def world_truth(
    world: World,
    indices: Iterable[int],
    concepts: Sequence[Concept] = CONCEPTS,
    grid: tuple[int, int] = GRID,
) -> Tensor:
    """Return `patch_truth` of pictures of the world: (images, n_patches, n_concepts) bool."""
    return sparse_truth(world, indices, concepts, grid).dense()


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
