"""The embedded world: pictures with captions and the truth about every pixel.

A picture is a function of (seed, task, split, index) alone. Nothing is read from disk.

>>> world = World("flowers", "test", n=32)
>>> world.class_names[world.label(3)]
'zinnia'
>>> bool(world.picture(3).mask("part", "petal").any())
True
"""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np
import torch

from patchsae_lib.world.render import KINDS, Picture, render
from patchsae_lib.world.scene import CLASSES, GROUP_OF, Scene, caption
from patchsae_lib.world.tasks import TASKS, Task, all_words

__all__ = ["CLASSES", "GROUP_OF", "KINDS", "TASKS", "Picture", "Task", "World", "all_words"]


class World:
    """`n` pictures of a task; classes take turns, so that every one is as frequent as the others.

    Parameters: `task` a key of `TASKS`; `split` any word (`train`, `test`: different pictures);
    `n` how many; `seed` another world with the same rules. Raises `ValueError` for an unknown task
    and, when a picture is asked for, `IndexError` for an index outside `0..n-1`.
    """

    def __init__(
        self, task: str = "world", split: str = "train", n: int = 1000, seed: int = 0
    ) -> None:
        if task not in TASKS:
            raise ValueError(f"no task {task!r} in the world; there are {', '.join(TASKS)}")
        self.task, self.split, self.n, self.seed = TASKS[task], split, n, seed
        self.class_names = self.task.classes

    def __len__(self) -> int:
        return self.n

    def _rng(self, index: int, what: str) -> random.Random:
        if not 0 <= index < self.n:
            raise IndexError(f"no picture {index}: this world has {self.n}, counted from 0")
        # Seeded with a string, whose hash() plays no part. Python promises random() for ever; the
        # other draws made from it were found the same in Python 3.7 to 3.13.
        return random.Random(f"{self.seed}/{self.task.name}/{self.split}/{index}/{what}")

    def label(self, index: int) -> int:
        """The class, as an index into `class_names`."""
        return index % len(self.class_names)

    def scene(self, index: int) -> Scene:
        """What is in the picture, before it is drawn."""
        return self.task.make(self._rng(index, "scene"), self.label(index))

    def caption(self, index: int) -> str:
        """A sentence under the picture; where there are no things to tell of, the task's own."""
        scene = self.scene(index)
        if not scene.things:
            return self.task.templates[0].format(self.class_names[self.label(index)])
        return caption(scene, self._rng(index, "caption"))

    def picture(self, index: int) -> Picture:
        """Pixels, and what each of them shows; independent of what was asked for before."""
        return render(self.scene(index))

    def batch(self, indices: Sequence[int]) -> torch.Tensor:
        """(len(indices), 3, 112, 112) uint8."""
        pixels = np.stack([self.picture(int(i)).pixels for i in indices])
        return torch.from_numpy(pixels).permute(0, 3, 1, 2)
