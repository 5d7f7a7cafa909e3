"""The explorer: reference images and masks of every latent, in the book and in JupyterLab."""

from patchsae_lib.explorer.bundle import describe, write_bundle
from patchsae_lib.explorer.widget import Explorer

__all__ = ["Explorer", "describe", "write_bundle"]
