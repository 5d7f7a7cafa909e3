"""What one or two models see in pictures, through one autoencoder: for the explorer's data, and
for pictures that are given to it while it runs."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import UnidentifiedImageError
from torch import Tensor

from patchsae_lib.ablation import Active
from patchsae_lib.clip import SplitCLIP
from patchsae_lib.evaluation import BATCH
from patchsae_lib.explorer.bundle import codes, read_shard, small
from patchsae_lib.images import read_image, square
from patchsae_lib.sae import SAE

HUGE = 20 * 2**20  # bytes of a file that is sent to the kernel


class Lens:
    """A task seen by `models`, each a CLIP and its head (classes, d_embed): CLIP, then perhaps an
    adapted one.

    `pictures` (n, 3, h, w) uint8 and `labels` (n,) are those of which `without` tells.
    """

    def __init__(
        self,
        sae: SAE,
        models: Mapping[str, tuple[SplitCLIP, Tensor]],
        pictures: Tensor | None = None,
        labels: Tensor | None = None,
    ) -> None:
        self.sae, self.models, self.pictures, self.labels = sae, models, pictures, labels

    @torch.no_grad()
    def tokens(self, pictures: Tensor) -> list[Tensor]:
        """For each model the residual tokens of pictures (n, 3, h, w) uint8."""
        parts = pictures.split(BATCH)
        return [
            torch.cat([clip.tokens(clip.preprocess(part)) for part in parts])
            for clip, _ in self.models.values()
        ]

    @torch.no_grad()
    def look(self, pictures: Tensor) -> list[dict[str, Any]]:
        """Of each picture: `models`, the latents of its tokens in each (`bundle.codes`), and
        `said`, the probabilities of the classes."""
        seen: list[dict[str, Any]] = [{"models": [], "said": []} for _ in pictures]
        for (clip, text), z in zip(self.models.values(), self.tokens(pictures), strict=True):
            said = clip.classify(z, text).softmax(1).tolist()
            for picture, one, probabilities in zip(seen, z, said, strict=True):
                f = self.sae.encode(one[: clip.n_tokens].float())
                picture["models"].append(codes(f.cpu()))
                picture["said"].append(probabilities)
        return seen

    @torch.no_grad()
    def without(self, label: int, latents: Sequence[int]) -> list[list[float]]:
        """For each model the share of the pictures of class `label` that are given each class when
        `latents` are off: every token is decoded from its others, as in `mask_latents`."""
        if self.pictures is None or self.labels is None:
            raise ValueError("there are no pictures to ask about")
        off, shares = torch.tensor(list(latents), dtype=torch.long), []
        mine = self.pictures[self.labels == label]
        if not len(mine):
            raise ValueError("none of the pictures is of this class")
        for (clip, text), z in zip(self.models.values(), self.tokens(mine), strict=True):
            active = Active.of(self.sae, z, clip.n_tokens)
            stay = ~torch.isin(active.latent, off.to(z.device))
            z_hat = active.take(stay.nonzero()[:, 0]).decode(self.sae) + self.sae.b_dec
            z_hat[:, clip.n_tokens :] = z[:, clip.n_tokens :]
            given = clip.classify(z_hat, text).argmax(1)
            shares.append((given.bincount(minlength=len(text)) / len(mine)).tolist())
        return shares

    def picture(self, source: bytes | Path, name: str) -> dict[str, Any]:
        """A file, or what it holds, as a picture of the explorer: `look`, with the `picture`
        itself. `ValueError` says why it is none."""
        size = len(source) if isinstance(source, bytes) else source.stat().st_size
        if size > HUGE:
            raise ValueError(f"{name} has {size / 2**20:.0f} MB, more than {HUGE >> 20}")
        try:
            image = read_image(io.BytesIO(source) if isinstance(source, bytes) else source)
        except OSError as error:
            cause = error.__cause__  # of a file that is no picture at all, it only says so
            why = "" if isinstance(cause, UnidentifiedImageError) else f": {cause}"
            raise ValueError(f"{name} cannot be read as a picture{why}") from None
        clip, _ = next(iter(self.models.values()))
        pixels = square(image, clip.visual.image_size[0])[None]
        (uri,), _ = small(pixels)
        return {"name": name, "picture": uri} | self.look(pixels)[0]


class Kernel:
    """What a page of JupyterLab may ask: for files of a `bundle`, and what `lenses` see, of each
    task one. `pictures` are the user's own so far."""

    def __init__(self, bundle: Path, lenses: Mapping[str, Lens]) -> None:
        self.bundle, self.lenses = bundle, dict(lenses)
        self.pictures: list[dict[str, Any]] = []

    def look(self, source: bytes | Path, name: str, task: str) -> dict[str, Any]:
        """A picture of the user's, seen as one of a task."""
        self.pictures.append({"task": task, "picture": self._lens(task).picture(source, name)})
        return self.pictures[-1]

    def answer(self, message: Mapping[str, Any], buffers: Sequence[Any]) -> dict[str, Any]:
        """The answer to a message, with its number; `error` says what is wrong with it."""
        try:
            reply = self._reply(message, buffers)
        except Exception as error:  # whatever it is, the page waits for an answer
            reply = {"error": str(error) or type(error).__name__}
        return {"answer": message.get("number"), **reply}

    def _reply(self, message: Mapping[str, Any], buffers: Sequence[Any]) -> dict[str, Any]:
        if name := message.get("load"):
            if not re.fullmatch(r"[a-z]+(-\d+){0,2}", name):
                raise ValueError(f"{name!r} is no file of a bundle")
            return {"shard": read_shard(self.bundle / f"{name}.js")}
        if "pictures" in message:
            return {"pictures": self.pictures}
        task = str(message.get("task"))
        if "picture" in message:
            return {"added": self.look(bytes(buffers[0]), str(message["picture"]), task)}
        return {"shares": self._lens(task).without(message["label"], message["without"])}

    def _lens(self, task: str) -> Lens:
        if not self.lenses:
            raise ValueError("no model to look with: give the explorer lenses, as notebook 6 does")
        if task not in self.lenses:
            raise ValueError(f"no model for the task {task!r}: {', '.join(self.lenses)}")
        return self.lenses[task]
