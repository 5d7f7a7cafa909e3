"""Models to measure with: speed depends on their sizes and on how many latents are active."""

import torch

from patchsae_lib.artefacts import DATA
from patchsae_lib.clip import SplitCLIP
from patchsae_lib.interop.openclip import load_clip, load_small_clip
from patchsae_lib.profiles import ModelConfig
from patchsae_lib.sae import SAE


def vit_b_16() -> SplitCLIP:
    """The paper's CLIP with random weights: speed does not depend on them."""
    return load_clip(ModelConfig(pretrained="none"))


def small() -> SplitCLIP:
    """The world's CLIP."""
    return load_small_clip(DATA / "small_clip")


def sparse(clip: SplitCLIP, d_sae: int, z: torch.Tensor, l0: int) -> SAE:
    """A random autoencoder with about `l0` active latents a token."""
    sae = SAE(clip.d_vit, d_sae).eval().requires_grad_(False)
    some = sae.pre_activations(z[0])
    sae.b_enc.sub_(float(some.flatten().kthvalue(round(some.numel() * (1 - l0 / d_sae))).values))
    return sae
