"""Where a latent is active in a picture (paper section 3.3)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from patchsae_lib.activations import TokenCache
from patchsae_lib.sae import SAE


@torch.no_grad()
def latent_masks(
    sae: SAE, z: Tensor, latents: Sequence[int], grid: tuple[int, int] | None = None
) -> Tensor:
    """Where latents are active: (images, latents, rows, columns) of tokens z (images, t, d_vit).

    In units of activation. The first token is CLS, which has no place; of the others as many are
    read as fill the `grid` (rows, columns), which is square unless given.
    """
    side = int((z.shape[1] - 1) ** 0.5)
    rows, columns = grid or (side, side)
    if rows * columns > z.shape[1] - 1:
        raise ValueError(f"{z.shape[1] - 1} patches do not fill a grid of {rows} × {columns}")
    f = torch.stack([sae.encode(one)[:, list(latents)] for one in z.float()])
    return f[:, 1 : 1 + rows * columns].transpose(1, 2).unflatten(2, (rows, columns))


@torch.no_grad()
def reference_masks(
    sae: SAE,
    cache: TokenCache,
    images: Tensor,
    grid: tuple[int, int] | None = None,
    batch: int = 8,
) -> Tensor:
    """Where each latent is active in pictures of its own: (d, k, rows, columns) float16.

    `images` (d, k) are those of a `LatentTable`, numbers of pictures that are in the cache; −1 is
    none, and its mask is empty. Each picture is encoded once, for all latents that it belongs to.
    """
    n_patches = cache.tokens.shape[1] - 1
    rows, columns = grid or (int(n_patches**0.5),) * 2
    out = torch.zeros(*images.shape, rows * columns, dtype=torch.float16)
    latent, rank = (images >= 0).nonzero().unbind(1)
    picture = images[latent, rank]
    order = picture.argsort()
    latent, rank, picture = latent[order], rank[order], picture[order]
    used, which = picture.unique_consecutive(return_inverse=True)
    row_of = torch.full((int(cache.indices.max()) + 1,), -1)
    row_of[cache.indices] = torch.arange(len(cache.indices))
    for start in range(0, len(used), batch):
        z = cache.tokens[row_of[used[start : start + batch]]]
        f = sae.encode(z[:, 1 : 1 + rows * columns].float())
        some = (which >= start) & (which < start + batch)
        out[latent[some], rank[some]] = f[which[some] - start, :, latent[some]].half()
    return out.unflatten(2, (rows, columns))


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
