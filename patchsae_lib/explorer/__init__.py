"""The explorer: every latent and every patch, in the book and in JupyterLab."""

from patchsae_lib.explorer.bundle import Latents, Task, describe, write_bundle, write_tasks
from patchsae_lib.explorer.lens import Lens
from patchsae_lib.explorer.widget import Explorer

__all__ = ["Explorer", "Latents", "Lens", "Task", "describe", "write_bundle", "write_tasks"]
