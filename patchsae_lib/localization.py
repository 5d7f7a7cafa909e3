"""Where a latent is active in a picture (paper section 3.3)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

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
    patches, chosen = _patches_of(grid, tokens), torch.tensor(list(latents), dtype=torch.long)
    parts = tokens.split(sae.images_at_once(tokens.shape[1]))
    masks = torch.cat([sae.encode(z[:, patches])[..., chosen].cpu() for z in parts])
    return masks.transpose(1, 2).unflatten(2, grid)


@torch.no_grad()
def share_inside(sae: SAE, tokens: Tensor | Tokens, latents: Tensor, inside: Tensor) -> Tensor:
    """Return the share of latents' activity in patches that lies inside a region: (images, k) in
    0..1, 0 for silent latents. Each image has its `latents` (images, k) and its region, `inside`
    (images, n_patches) bool."""
    n, device, shares = sae.images_at_once(tokens.shape[1]), sae.W_dec.device, []
    for z, *chosen in zip(*(x.split(n) for x in (tokens, latents, inside)), strict=True):
        latent, region = (x.to(device)[:, None] for x in chosen)
        f = sae.encode(z[:, 1 : 1 + inside.shape[1]])
        activity = f.gather(2, latent.expand(-1, inside.shape[1], -1))  # (b, n_patches, k)
        within = (region.float() @ activity)[:, 0]
        shares.append((within / activity.sum(1).clamp_min(1e-9)).cpu())
    return torch.cat(shares)


@torch.no_grad()
def patch_changes(
    sae: SAE, first: Tensor | Tokens, second: Tensor | Tokens, is_changed: Tensor
) -> Tensor:
    """Return the mean |Δf| of each latent in the patches that a change of the picture concerns,
    and in the other ones: (2, d), over all pictures.

    `first` and `second` (images, t, d_vit) are the tokens of pictures before and after the change,
    `is_changed` (images, n_patches) bool says where; 0 where there is no such patch.
    """
    device, patches = sae.W_dec.device, slice(1, 1 + is_changed.shape[1])
    n, sums = sae.images_at_once(first.shape[1]), torch.zeros(2, sae.d_sae, device=device)
    for a, b, region in zip(*(x.split(n) for x in (first, second, is_changed)), strict=True):
        f, g = (sae.encode(z[:, patches]) for z in (a, b))
        is_in = region.to(device).flatten()
        sums += torch.stack([is_in, ~is_in]).float() @ (g - f).abs_().flatten(0, 1)
    counts = torch.stack([is_changed.sum(), (~is_changed).sum()])[:, None]
    return sums.cpu() / counts.cpu().clamp_min(1)


@torch.no_grad()
def reference_masks(sae: SAE, tokens: Tokens, images: Tensor, grid: tuple[int, int]) -> Tensor:
    """Return the activations of each latent in its own images: (d, k, rows, columns) float16.

    `images` (d, k) are the reference images of a `LatentTable`: numbers of pictures among
    `tokens.indices`, or −1 for none, whose mask is 0. Each picture is encoded once.
    """
    patches, images = _patches_of(grid, tokens), images.cpu()
    n = sae.images_at_once(tokens.n_tokens)
    masks = torch.zeros(*images.shape, grid[0] * grid[1], dtype=torch.float16)
    latent, place = (images >= 0).nonzero().unbind(1)
    pictures, number = images[latent, place].unique(return_inverse=True)
    for start in range(0, len(pictures), n):
        z = tokens[tokens.row_of(pictures[start : start + n])][:, patches]
        f = sae.encode(z)
        in_batch = (number >= start) & (number < start + n)
        image, active = number[in_batch] - start, latent[in_batch]
        masks[active, place[in_batch]] = f[image, :, active].half().cpu()
    return masks.unflatten(2, grid)


def _patches_of(grid: tuple[int, int], tokens: Tensor | Tokens) -> slice:
    """Where the patches of a grid (rows, columns) are among the tokens of an image."""
    (rows, columns), n_patches = grid, tokens.shape[1] - 1
    if rows * columns > n_patches:
        raise ValueError(f"{n_patches} patches do not fill a grid of {rows} × {columns}")
    return slice(1, 1 + rows * columns)
