"""What one or two models see in pictures through one autoencoder: in the explorer's data, and in
pictures that are added while it runs."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import UnidentifiedImageError
from torch import Tensor

from patchsae_lib.clip import SplitCLIP
from patchsae_lib.explorer.files import codes, small
from patchsae_lib.pictures import TEMPLATE, read_image, square
from patchsae_lib.sae import SAE
from patchsae_lib.sparse import SparseLatents

HUGE = 20 * 2**20  # bytes; the kernel accepts no larger file


class Lens:
    """A task seen by `models`: CLIP and perhaps an adapted one, each with its head (classes,
    d_embed). `template` asks CLIP for classes of a reader's own.

    `without` measures on `pictures` (n, 3, h, w) uint8 with `labels` (n,).
    """

    def __init__(
        self,
        sae: SAE,
        models: Mapping[str, tuple[SplitCLIP, Tensor]],
        pictures: Tensor | None = None,
        labels: Tensor | None = None,
        template: str = TEMPLATE,
    ) -> None:
        self.sae, self.models, self.pictures, self.labels = sae, models, pictures, labels
        self.template = template

    @torch.no_grad()
    def tokens(self, pictures: Tensor) -> list[Tensor]:
        """Return each model's residual tokens of pictures (n, 3, h, w) uint8, on the CPU."""
        return [
            torch.cat(
                [clip.tokens(clip.preprocess(x)).cpu() for x in pictures.split(clip.at_once)]
            )
            for clip, _ in self.models.values()
        ]

    @torch.no_grad()
    def look(self, pictures: Tensor) -> list[dict[str, Any]]:
        """Return for each picture, as lists with an entry per model, its active latents (`models`,
        encoded by `codes`) and its class probabilities (`said`)."""
        looks: list[dict[str, Any]] = [{"models": [], "said": []} for _ in pictures]
        for (clip, head), z in zip(self.models.values(), self.tokens(pictures), strict=True):
            predicted = clip.classify(z, head).softmax(1).tolist()
            for look, tokens, probabilities in zip(looks, z, predicted, strict=True):
                latents = SparseLatents.encode(self.sae, tokens[None, : clip.n_tokens])
                look["models"].append(codes(latents))
                look["said"].append(probabilities)
        return looks

    @torch.no_grad()
    def without(self, label: int, latents: Sequence[int]) -> list[list[float]]:
        """Return for each model the share of pictures of class `label` predicted as each class
        when `latents` are off, as in `mask_latents`.

        Raises `ValueError` without pictures of the class.
        """
        if self.pictures is None or self.labels is None:
            raise ValueError("there are no pictures to ask about")
        pictures = self.pictures[(self.labels == label).to(self.pictures.device)]
        if not len(pictures):
            raise ValueError("none of the pictures is of this class")
        off, shares = torch.tensor(list(latents), dtype=torch.long), []
        for (clip, head), z in zip(self.models.values(), self.tokens(pictures), strict=True):
            parts = z.split(min(clip.at_once, self.sae.images_at_once(z.shape[1])))
            logits = [self._logits(clip, head, part, off) for part in parts]
            predicted = torch.cat(logits).argmax(1)
            shares.append((predicted.bincount(minlength=len(head)) / len(pictures)).tolist())
        return shares

    def _logits(self, clip: SplitCLIP, head: Tensor, z: Tensor, off: Tensor) -> Tensor:
        """Return logits of tokens z that are decoded without the latents `off`, on the CPU."""
        z = z.to(self.sae.W_dec.device, torch.float32)
        latents = SparseLatents.encode(self.sae, z, clip.n_tokens)
        kept = latents.select(~torch.isin(latents.latent, off.to(latents.latent.device)))
        z_hat = kept.decode(self.sae.W_dec) + self.sae.b_dec
        z_hat[:, clip.n_tokens :] = z[:, clip.n_tokens :]  # prompts stay as they are
        return clip.classify(z_hat, head).cpu()

    def picture(self, source: bytes | Path, name: str) -> dict[str, Any]:
        """Return a picture of the explorer, made of a file or its content: `look`, `name`, and the
        `picture` itself. Raises `ValueError` that says why it cannot be read."""
        try:
            size = len(source) if isinstance(source, bytes) else source.stat().st_size
            if size > HUGE:
                raise ValueError(f"{name} has {size / 2**20:.0f} MB, more than {HUGE >> 20}")
            image = read_image(io.BytesIO(source) if isinstance(source, bytes) else source)
        except OSError as error:
            cause = error.__cause__ or error  # for a file of another kind it adds nothing
            why = "" if isinstance(cause, UnidentifiedImageError) else f": {cause}"
            raise ValueError(f"{name} cannot be read as a picture{why}") from None
        clip, _ = next(iter(self.models.values()))
        pixels = square(image, clip.visual.image_size[0])[None]
        (uri,), _ = small(pixels)
        return {"name": name, "picture": uri} | self.look(pixels)[0]
