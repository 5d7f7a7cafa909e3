"""Where a latent is active in a picture (paper section 3.3)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from patchsae_lib.clip import SplitCLIP
from patchsae_lib.pictures import Pictures
from patchsae_lib.sae import SAE
from patchsae_lib.tokens import Tokens

ORANGE = (255, 92, 0)


@torch.no_grad()
def latent_masks(
    sae: SAE,
    tokens: Tensor | Tokens,
    latents: Sequence[int],
    grid: tuple[int, int] | None = None,
) -> Tensor:
    """Return the activations of latents in each patch: (images, latents, rows, columns).

    `tokens` (images, t, d_vit) start with CLS, which has no place; the patches after it fill the
    `grid` (rows, columns), by default the largest square.
    """
    rows, columns = _checked_grid(tokens.shape[1] - 1, grid)
    masks = [
        sae.encode(z[0].to(sae.W_dec.device, torch.float32))[1 : 1 + rows * columns, list(latents)]
        for z in tokens.split(1)
    ]
    return torch.stack(masks).transpose(1, 2).unflatten(2, (rows, columns)).cpu()


@torch.no_grad()
def share_inside(sae: SAE, tokens: Tensor | Tokens, latents: Tensor, inside: Tensor) -> Tensor:
    """Return the share of latents' activity that lies inside a region: (images, k) in 0..1.

    `latents` (images, k) are those of each image, `inside` (images, n_patches) bool is its region.
    CLS, which has no place, does not count. A silent latent has share 0.
    """
    shares = []
    for z, chosen, region in zip(tokens.split(1), latents, inside, strict=True):
        f = sae.encode(z[0].to(sae.W_dec.device, torch.float32)).cpu()
        activity = f[1 : 1 + len(region), chosen]
        shares.append(activity[region].sum(0) / activity.sum(0).clamp_min(1e-9))
    return torch.stack(shares)


@torch.no_grad()
def reference_masks(
    sae: SAE,
    tokens: Tokens,
    images: Tensor,
    grid: tuple[int, int] | None = None,
    batch: int = 8,
) -> Tensor:
    """Return the activations of each latent in its own images: (d, k, rows, columns) float16.

    `images` (d, k) are the reference images of a `LatentTable`: numbers of pictures among
    `tokens.indices`, or −1 for none, whose mask is 0. Each picture is encoded once.
    """
    rows, columns = _checked_grid(tokens.shape[1] - 1, grid)
    masks = torch.zeros(*images.shape, rows * columns, dtype=torch.float16)
    latent, place = (images >= 0).nonzero().unbind(1)
    pictures, number = images[latent, place].unique(return_inverse=True)
    for start in range(0, len(pictures), batch):
        z = tokens[tokens.row_of(pictures[start : start + batch])][:, 1 : 1 + rows * columns]
        f = sae.encode(z.to(sae.W_dec.device, torch.float32))
        in_batch = (number >= start) & (number < start + batch)
        image, active = number[in_batch] - start, latent[in_batch]
        masks[active, place[in_batch]] = f[image, :, active].half().cpu()
    return masks.unflatten(2, (rows, columns))


def _checked_grid(n_patches: int, grid: tuple[int, int] | None) -> tuple[int, int]:
    rows, columns = grid or (int(n_patches**0.5),) * 2
    if rows * columns > n_patches:
        raise ValueError(f"{n_patches} patches do not fill a grid of {rows} × {columns}")
    return rows, columns


class _Split(Protocol):  # the part of splits.Split that is needed here
    clip: SplitCLIP
    pictures: Pictures
    tokens: Tokens


def highlight(sae: SAE, latent: int, *splits: _Split) -> list[Image.Image]:
    """Draw the pictures of splits, coloured where a latent is active, all on one scale."""
    shown = [split for split in splits if len(split.tokens)]
    masks = [latent_masks(sae, x.tokens, [latent], x.clip.grid)[:, 0] for x in shown]
    full = max((float(mask.max()) for mask in masks), default=0.0)
    return [
        overlay(picture, patches, full)
        for split, mask in zip(shown, masks, strict=True)
        for picture, patches in zip(split.pictures.batch(range(len(mask))), mask, strict=True)
    ]


def before_and_after(
    sae: SAE, latent: int, before: _Split, after: _Split, references: _Split
) -> tuple[list[Image.Image], list[str]]:
    """Draw a latent on pictures before and after adaptation, on one scale, and on its reference
    images, on another: the drawings, and a word for each (paper Figs. 18, 19)."""
    drawings = highlight(sae, latent, before, after) + highlight(sae, latent, references)
    words = {"CLIP": before, "MaPLe": after, "reference image": references}
    return drawings, [word for word, split in words.items() for _ in range(len(split.tokens))]


def overlay(picture: Tensor, mask: Tensor, full: float) -> Image.Image:
    """Return a picture (3, h, w) uint8, grey where a mask (rows, columns) is 0, orange elsewhere.

    The colour saturates at the activation `full`: one number for all pictures and models that are
    compared.
    """
    if picture.dtype != torch.uint8 or picture.ndim != 3:
        raise ValueError(
            f"a picture is (3, h, w) uint8, got {picture.dtype} {tuple(picture.shape)}"
        )
    large = F.interpolate(mask[None, None].float(), picture.shape[1:], mode="nearest-exact")[0, 0]
    share = (large / max(full, 1e-12)).clamp(0, 1)[..., None]
    rgb = picture.permute(1, 2, 0).float()
    grey = rgb.mean(2, keepdim=True) * 0.55 + 40
    shown = torch.lerp(grey, rgb * 0.55 + torch.tensor(ORANGE) * 0.45, share.sqrt())
    return Image.fromarray(shown.round().to(torch.uint8).numpy())
