"""The explorer: all latents and all patches to look at, in the book and in JupyterLab."""

from patchsae_lib.explorer.bundle import Latents, Task, describe, write_bundle, write_tasks
from patchsae_lib.explorer.drawings import before_and_after, highlight, spotlight
from patchsae_lib.explorer.examples import examples, nearest
from patchsae_lib.explorer.film import Checkpoints, Film, film_training
from patchsae_lib.explorer.lens import Lens
from patchsae_lib.explorer.plants import PlantGame
from patchsae_lib.explorer.strips import Strips, explorer_link, latent_link
from patchsae_lib.explorer.widget import Explorer

__all__ = [
    "Checkpoints", "Explorer", "Film", "Latents", "Lens", "PlantGame", "Strips", "Task",
    "before_and_after", "describe", "examples", "explorer_link", "film_training", "highlight",
    "latent_link", "nearest", "spotlight", "write_bundle", "write_tasks",
]  # fmt: skip
