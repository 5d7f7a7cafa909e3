"""Where a latent is active in a picture (paper section 3.3)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from patchsae_lib.evaluation import BATCH
from patchsae_lib.sae import SAE
from patchsae_lib.tokens import Tokens


@torch.no_grad()
def latent_masks(
    sae: SAE, tokens: Tensor | Tokens, latents: Sequence[int], grid: tuple[int, int]
) -> Tensor:
    """Return the activations of latents in each patch: (images, latents, rows, columns).

    `tokens` (images, t, d_vit) start with CLS, which has no place; the patches after it fill the
    `grid` (rows, columns).
    """
    patches, device = _patches_of(grid, tokens), sae.W_dec.device
    encoded = (sae.encode(z[0].to(device, torch.float32)) for z in tokens.split(1))
    masks = torch.stack([f[patches, list(latents)] for f in encoded])
    return masks.transpose(1, 2).unflatten(2, grid).cpu()


@torch.no_grad()
def share_inside(sae: SAE, tokens: Tensor | Tokens, latents: Tensor, inside: Tensor) -> Tensor:
    """Return the share of latents' activity in patches that lies inside a region: (images, k) in
    0..1, 0 for silent latents. Each image has its `latents` (images, k) and its region, `inside`
    (images, n_patches) bool."""
    shares = []
    for z, chosen, region in zip(tokens.split(1), latents, inside, strict=True):
        f = sae.encode(z[0].to(sae.W_dec.device, torch.float32)).cpu()
        activity = f[1 : 1 + len(region), chosen]
        shares.append(activity[region].sum(0) / activity.sum(0).clamp_min(1e-9))
    return torch.stack(shares)


@torch.no_grad()
def patch_changes(
    sae: SAE, first: Tensor | Tokens, second: Tensor | Tokens, is_changed: Tensor
) -> Tensor:
    """Return the mean |Δf| of each latent in the patches that a change of the picture concerns,
    and in the other ones: (2, d), over all pictures.

    `first` and `second` (images, t, d_vit) are the tokens of pictures before and after the change,
    `is_changed` (images, n_patches) bool says where; 0 where there is no such patch.
    """
    sums = torch.zeros(2, sae.d_sae)
    for a, b, region in zip(first.split(1), second.split(1), is_changed, strict=True):
        patches = slice(1, 1 + len(region))
        f, g = (sae.encode(z[0, patches].to(sae.W_dec.device, torch.float32)) for z in (a, b))
        moved = (g - f).abs().cpu()
        sums += torch.stack([moved[region].sum(0), moved[~region].sum(0)])
    n = int(is_changed.sum())
    return sums / torch.tensor([[n], [is_changed.numel() - n]]).clamp_min(1)


@torch.no_grad()
def reference_masks(sae: SAE, tokens: Tokens, images: Tensor, grid: tuple[int, int]) -> Tensor:
    """Return the activations of each latent in its own images: (d, k, rows, columns) float16.

    `images` (d, k) are the reference images of a `LatentTable`: numbers of pictures among
    `tokens.indices`, or −1 for none, whose mask is 0. Each picture is encoded once.
    """
    patches = _patches_of(grid, tokens)
    masks = torch.zeros(*images.shape, grid[0] * grid[1], dtype=torch.float16)
    latent, place = (images >= 0).nonzero().unbind(1)
    pictures, number = images[latent, place].unique(return_inverse=True)
    for start in range(0, len(pictures), BATCH):
        z = tokens[tokens.row_of(pictures[start : start + BATCH])][:, patches]
        f = sae.encode(z.to(sae.W_dec.device, torch.float32))
        in_batch = (number >= start) & (number < start + BATCH)
        image, active = number[in_batch] - start, latent[in_batch]
        masks[active, place[in_batch]] = f[image, :, active].half().cpu()
    return masks.unflatten(2, grid)


def _patches_of(grid: tuple[int, int], tokens: Tensor | Tokens) -> slice:
    """Where the patches of a grid (rows, columns) are among the tokens of an image."""
    (rows, columns), n_patches = grid, tokens.shape[1] - 1
    if rows * columns > n_patches:
        raise ValueError(f"{n_patches} patches do not fill a grid of {rows} × {columns}")
    return slice(1, 1 + rows * columns)
