"""The embedded world: rendered pictures with captions and the truth about every pixel.

A picture depends on (seed, task, split, index) alone. Nothing is read from disk.

>>> world = World("flowers", "test", n=32)
>>> world.class_names[world.label(3)]
'zinnia'
>>> bool(world.picture(3).mask("part", "petal").any())
True
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch

from patchsae_lib.world.render import KINDS, Picture, render
from patchsae_lib.world.scene import CLASSES, GROUP_OF, Scene, caption
from patchsae_lib.world.tasks import DOWNSTREAM, TASKS, Task, all_words

__all__ = [
    "CLASSES", "DOWNSTREAM", "GROUP_OF", "KINDS", "TASKS", "Picture", "Task", "World", "all_words",
]  # fmt: skip

KEPT = 4096  # pictures of a world whose pixels stay in memory: 150 MB


class World:
    """`n` pictures of a task. Classes take turns, so all are equally frequent.

    `task` is a key of `TASKS`; `split` is any word (`train` and `test` have different pictures);
    another `seed` gives another world with the same rules. Raises `ValueError` for an unknown
    task; the methods raise `IndexError` for an index outside `0..n-1`.
    """

    keeps = True  # pixels, in memory

    def __init__(
        self, task: str = "world", split: str = "train", n: int = 1000, seed: int = 0
    ) -> None:
        if task not in TASKS:
            raise ValueError(f"no task {task!r} in the world; there are {', '.join(TASKS)}")
        self.task, self.split, self.n, self.seed = TASKS[task], split, n, seed
        self.class_names = self.task.classes
        self._pixels = lru_cache(KEPT)(lambda index: self.picture(index).pixels)

    def __len__(self) -> int:
        return self.n

    def _rng(self, index: int, purpose: str) -> random.Random:
        if not 0 <= index < self.n:
            raise IndexError(f"no picture {index}: this world has {self.n}, counted from 0")
        # A string seed does not go through hash(). Python guarantees that random() never changes;
        # the draws derived from it were checked to be the same in Python 3.7 to 3.13.
        return random.Random(f"{self.seed}/{self.task.name}/{self.split}/{index}/{purpose}")

    def label(self, index: int) -> int:
        """Return the class of a picture, an index into `class_names`."""
        return index % len(self.class_names)

    def scene(self, index: int) -> Scene:
        """Return what a picture contains, before it is drawn."""
        return self.task.make(self._rng(index, "scene"), self.label(index))

    def caption(self, index: int) -> str:
        """Return a sentence that describes a picture.

        A scene without things gets the task's first template with the class name.
        """
        scene = self.scene(index)
        if not scene.things:
            return self.task.templates[0].format(self.class_names[self.label(index)])
        return caption(scene, self._rng(index, "caption"))

    def picture(self, index: int) -> Picture:
        """Draw a picture: its pixels, and what each of them shows."""
        return render(self.scene(index))

    def batch(self, indices: Sequence[int]) -> torch.Tensor:
        """Return the pixels of pictures, (len(indices), 3, 112, 112) uint8."""
        pixels = np.stack([self._pixels(int(i)) for i in indices])
        return torch.from_numpy(pixels).permute(0, 3, 1, 2)
