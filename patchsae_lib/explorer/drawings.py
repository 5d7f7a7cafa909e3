"""Pictures lit where a latent is active (paper Figs. 4, 18 and 19)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from patchsae_lib.localization import latent_masks
from patchsae_lib.sae import SAE
from patchsae_lib.splits import Split


def highlight(sae: SAE, latent: int, *splits: Split) -> list[Image.Image]:
    """Draw the pictures of splits, lit where a latent is active, all on one scale."""
    shown = [split for split in splits if len(split.tokens)]
    masks = [latent_masks(sae, x.tokens, [latent], x.clip.grid)[:, 0] for x in shown]
    full = max((float(mask.max()) for mask in masks), default=0.0)
    return [
        spotlight(picture, patches, full)
        for split, mask in zip(shown, masks, strict=True)
        for picture, patches in zip(split.pictures.batch(range(len(mask))), mask, strict=True)
    ]


def before_and_after(
    sae: SAE, latent: int, before: Split, after: Split, references: Split
) -> tuple[list[Image.Image], list[str]]:
    """Draw a latent on pictures before and after adaptation, on one scale, and on its reference
    images, on another: the drawings, and words for each (paper Figs. 18, 19)."""
    drawings = highlight(sae, latent, before, after) + highlight(sae, latent, references)
    groups = {"CLIP": before, "MaPLe": after, "reference images": references}
    return drawings, [
        f"{group}: {x}" for group, split in groups.items() for x in split.label_names
    ]


def spotlight(picture: Tensor, mask: Tensor, full: float) -> Image.Image:
    """Return a picture (3, h, w) uint8, dark and grey where a mask (rows, columns) is 0 and as it
    is from the activation `full` on: one number for all pictures and models that are compared."""
    if picture.dtype != torch.uint8 or picture.ndim != 3:
        shape = tuple(picture.shape)
        raise ValueError(f"a picture is (3, h, w) uint8, got {picture.dtype} {shape}")
    large = F.interpolate(mask[None, None].float(), picture.shape[1:], mode="nearest-exact")[0, 0]
    share = (large / max(full, 1e-12)).clamp(0, 1)[..., None]
    rgb = picture.permute(1, 2, 0).float()
    dark = rgb.mean(2, keepdim=True) * 0.35
    shown = torch.lerp(dark, rgb, share.sqrt())
    return Image.fromarray(shown.round().to(torch.uint8).numpy())
