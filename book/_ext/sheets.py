"""Contact sheets of the world: eight pictures of every task, and a strip for the front page."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
from PIL import Image

from patchsae_lib.world import TASKS, World

QUALITY = 82  # of WebP
PER_TASK = 8


def webp(pixels: np.ndarray) -> bytes:
    """Bytes of a WebP file of (height, width, 3 or 4) uint8."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "WEBP", quality=QUALITY, method=5)
    return file.getvalue()


def task_examples(name: str) -> tuple[World, list[int]]:
    """A task's test pictures and the indices of eight: four of base classes, four of novel ones,
    evenly spaced, each from another round through the classes."""
    n, split, half = len(TASKS[name].classes), len(TASKS[name].base), PER_TASK // 2
    labels = [split * k // half for k in range(half)]
    labels += [split + (n - split) * k // half for k in range(half)]
    return World(name, "test", PER_TASK * n), [k * n + label for k, label in enumerate(labels)]


def sheet(world: World, indices: Sequence[int], columns: int, gap: int = 6) -> np.ndarray:
    """(height, width, 4): pictures in rows, with nothing between them."""
    cells = []
    for i in indices:
        opaque = np.pad(world.picture(i).pixels, ((0, 0), (0, 0), (0, 1)), constant_values=255)
        cells.append(np.pad(opaque, ((0, gap), (0, gap), (0, 0))))
    rows = [np.concatenate(cells[i : i + columns], 1) for i in range(0, len(cells), columns)]
    return np.concatenate(rows)[:-gap, :-gap]


def task_sheet(name: str) -> bytes:
    """`task_examples` as WebP, with a wider gap between base and novel classes."""
    pixels = sheet(*task_examples(name), PER_TASK)
    return webp(np.insert(pixels, [pixels.shape[1] // 2] * 12, 0, axis=1))


def world_strip() -> bytes:
    """Two rows of test pictures, every sixteenth of them, as WebP."""
    world = World("world", "test", n=24 * 16)
    return webp(sheet(world, range(0, len(world), 16), columns=12))
