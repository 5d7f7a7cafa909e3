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


def overlays(sae: SAE, latent: int, *splits: _Split) -> list[Image.Image]:
    """Return the pictures of all splits with the masks of a latent, on one scale."""
    shown = [split for split in splits if len(split.tokens)]
    masks = [latent_masks(sae, split.tokens, [latent], split.clip.grid)[:, 0] for split in shown]
    pictures = [split.pictures.batch(list(range(len(split.tokens)))) for split in shown]
    full = max((float(mask.max()) for mask in masks), default=0)
    parts = zip(pictures, masks, strict=True)
    return [overlay(*pair, full) for part in parts for pair in zip(*part, strict=True)]


def enlarge(mask: Tensor, size: tuple[int, int], smooth: bool = False) -> Tensor:
    """A mask (…, rows, columns) at the `size` (height, width) of a picture: every patch a
    rectangle, or smoothly in between."""
    flat = mask.reshape(-1, 1, *mask.shape[-2:]).float()
    large = F.interpolate(flat, size, mode="bilinear" if smooth else "nearest-exact")
    return large.reshape(*mask.shape[:-2], *size)


def overlay(
    picture: Tensor,
    mask: Tensor,
    full: float | None,
    colour: tuple[int, int, int] = (255, 92, 0),
    smooth: bool = False,
) -> Image.Image:
    """A picture (3, h, w) uint8, greyed where a mask (rows, columns) is 0 and coloured where not.

    The colour is fully there from the activation `full` on: the same number for all pictures and
    models that are compared. None takes the mask's own maximum; the caption has to say so.
    """
    if picture.dtype != torch.uint8 or picture.ndim != 3:
        raise ValueError(
            f"a picture is (3, h, w) uint8, got {picture.dtype} {tuple(picture.shape)}"
        )
    full = float(mask.max()) if full is None else full
    height, width = picture.shape[1:]
    share = (enlarge(mask, (height, width), smooth) / max(full, 1e-12)).clamp(0, 1)[..., None]
    rgb = picture.permute(1, 2, 0).float()
    grey = rgb.mean(2, keepdim=True) * 0.55 + 40
    shown = torch.lerp(grey, rgb * 0.55 + torch.tensor(colour) * 0.45, share.sqrt())
    return Image.fromarray(shown.round().to(torch.uint8).numpy())
