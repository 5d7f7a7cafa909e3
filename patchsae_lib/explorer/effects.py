"""What latents do to the classes: removed from their reference images, beside random directions.

`effects-N.js` of a bundle has, for its latents, the classes that they raise and lower most:
`classes` (perShard, 10) int16 and by how many logits, `logits` float32, the strongest first, five
up, five down (fewer of fewer classes); and `null` (perShard,) float32, which of random directions
of the same length one in twenty exceeds.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from patchsae_lib.clip import SplitCLIP
from patchsae_lib.explorer.bundle import PER_SHARD, read_index
from patchsae_lib.explorer.files import base64_of, write_shard
from patchsae_lib.sae import SAE
from patchsae_lib.tokens import Tokens

N_SHOWN = 5  # classes up, and as many down
LEVEL = 0.95  # of random directions, that stay below the null


@torch.no_grad()
def class_effects(
    clip: SplitCLIP, sae: SAE, tokens: Tokens, references: Tensor, head: Tensor
) -> tuple[Tensor, Tensor]:
    """Measure what each latent adds to the logits of all classes, (d, c), and its null (d,).

    On its `references` (d, k), rows of `tokens` (−1: none): the logits of the reconstruction less
    those without the latent, above the mean over classes, on average over pictures; as
    `ablation.removal_effects`, for every class. In place of the latent's decoder row a random
    direction of its length is removed twice, with the latent's activations. The null is the root
    mean square over classes of one of them, times a factor common to all latents, so that the
    largest effect of the other is above it for one latent in twenty.
    """
    generator, W = torch.Generator().manual_seed(0), sae.W_dec
    random = torch.randn(2, *W.shape, generator=generator).to(W)
    directions = torch.cat([W[None], F.normalize(random, dim=2) * W.norm(dim=1, keepdim=True)])
    total = torch.zeros(len(directions), len(W), len(head))
    for image in references[references >= 0].unique().tolist():
        (z,) = tokens.select([image]).split(1)
        f = sae.encode(z)
        z_hat, f = sae.decode(f), f[0]
        usual = clip.classify(z_hat, head)
        for latents in (
            (references == image).any(1).nonzero()[:, 0].split(max(1, clip.at_once // 3))
        ):
            written = f[:, latents].T[:, :, None] * directions[:, latents][:, :, None]
            without = clip.classify((z_hat - written).flatten(0, 1), head)
            total[:, latents] += (usual - without).unflatten(0, (3, -1)).cpu()
    total -= total.mean(2, keepdim=True)
    effect, *null = total / (references >= 0).sum(1).clamp_min(1)[:, None]
    size, most = null[0].square().mean(1).sqrt(), null[1].abs().amax(1)
    active = size > 0
    factor = (most[active] / size[active]).quantile(LEVEL) if active.any() else 0.0
    return effect, factor * size


def write_effects(folder: str | Path, effect: Tensor, null: Tensor) -> None:
    """Put into the bundle in `folder` what `class_effects` returns."""
    folder = Path(folder)
    index, n = read_index(folder), min(N_SHOWN, effect.shape[1] // 2)
    up, down = effect.topk(n, 1), (-effect).topk(n, 1)
    classes = torch.cat([up.indices, down.indices], 1)
    logits = torch.cat([up.values, -down.values], 1)
    for number, rows in enumerate(torch.arange(len(effect)).split(PER_SHARD)):
        content = {
            "classes": base64_of(classes[rows], "<i2"),
            "logits": base64_of(logits[rows], "<f4"),
            "null": base64_of(null[rows], "<f4"),
        }
        write_shard(folder / f"effects-{number}.js", content)
    write_shard(folder / "index.js", index | {"effects": True})
