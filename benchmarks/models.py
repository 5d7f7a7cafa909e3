"""Models to benchmark: speed depends on their sizes and on the number of active latents."""

import torch

from patchsae_lib.artefacts import DATA
from patchsae_lib.clip import SplitCLIP
from patchsae_lib.interop.openclip import load_clip, load_small_clip
from patchsae_lib.profiles import ModelConfig
from patchsae_lib.sae import SAE


def vit_b_16() -> SplitCLIP:
    """Return the paper's CLIP with random weights, on which speed does not depend."""
    return load_clip(ModelConfig(pretrained="none"))


def small() -> SplitCLIP:
    """Return the CLIP of the embedded world."""
    return load_small_clip(DATA / "small_clip")


def sparse(clip: SplitCLIP, d_sae: int, z: torch.Tensor, l0: int) -> SAE:
    """Return a random autoencoder with about `l0` active latents per token."""
    sae = SAE(clip.d_vit, d_sae).eval().requires_grad_(False)
    values = sae.pre_activations(z[0]).flatten()
    sae.b_enc.sub_(float(values.kthvalue(round(len(values) * (1 - l0 / d_sae))).values))
    return sae
