"""What the engine of the page answers (`engine.js`), by torch: for models too large for a page."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from patchsae_lib.clip import SplitCLIP
from patchsae_lib.explorer.lens import Lens
from patchsae_lib.maple import AdaptedCLIP
from patchsae_lib.pictures import square

TRIED, STEPS, DRAWS = 24, 12, 20  # of the search for the fewest latents, as in the page


@dataclass
class View:
    """A picture in a model: tokens z (1, tokens, d_vit), latents f (1 + patches, d_sae)."""

    lens: Lens
    clip: SplitCLIP
    head: Tensor
    z: Tensor
    f: Tensor

    def probabilities(self, f: Tensor | None = None) -> Tensor:
        """Return probabilities (classes,), of the tokens or of their reconstruction from f."""
        z = self.z
        if f is not None:
            prompts = z[:, self.clip.n_tokens :]
            z = torch.cat([self.lens.sae.decode(f)[None].to(prompts), prompts], 1)
        return self.clip.classify(z, self.head)[0].softmax(0).cpu()

    def switched(
        self,
        factors: Sequence[Sequence[float]] = (),
        added: Sequence[Sequence[float]] = (),
        patches: Sequence[int] | None = None,
    ) -> Tensor:
        """Return probabilities with latents times `factors` (latent, factor), at all tokens or at
        `patches`, and `added` (latent, value) to patches."""
        f, rows = self.f.clone(), torch.arange(len(self.f))
        rows = rows if patches is None else torch.tensor(list(patches), dtype=torch.long) + 1
        for latent, factor in factors:
            f[rows, int(latent)] *= factor
        for latent, value in added:
            f[rows[rows > 0], int(latent)] += value
        return self.probabilities(f)

    def order(self) -> list[int]:
        """List the active latents by their sum over tokens, the largest first."""
        sums = self.f.double().sum(0)
        return sums.argsort(descending=True, stable=True)[: int((sums > 0).sum())].tolist()

    def code(self) -> dict[str, list]:
        """Return the active latents as the page has them: by token, `starts`, and values."""
        token, latent = self.f.nonzero(as_tuple=True)
        starts = torch.searchsorted(token.contiguous(), torch.arange(len(self.f) + 1))
        values = self.f[token, latent]
        return {name: x.tolist() for name, x in
                (("starts", starts), ("latents", latent), ("values", values))}  # fmt: skip


@dataclass
class Steering:
    """Answers `look`, `see`, `steer`, `fewest` and `why`, as `engine.js` does, for the tasks of
    `lenses` in their order."""

    lenses: Mapping[str, Lens]
    pictures: dict[int, Tensor] = field(default_factory=dict)
    last: int = 0

    @torch.no_grad()
    def answer(self, does: str, asked: Mapping[str, Any], buffers: Sequence[Any]) -> Any:
        """Return what the page waits for. Raises `ValueError` for what cannot be answered."""
        if does == "look":
            return self._look(asked["width"], asked["height"], bytes(buffers[0]))
        if does not in ("see", "steer", "fewest", "why"):
            raise ValueError(f"{does!r} is nothing that can be asked")
        views = self._views(asked)
        if does == "see":
            return [
                {
                    "code": v.code(),
                    "said": v.probabilities().tolist(),
                    "decoded": v.probabilities(v.f).tolist(),
                }
                for v in views
            ]
        if does == "steer":
            change = (asked.get(name) for name in ("factors", "added", "patches"))
            factors, added, patches = change
            return [v.switched(factors or (), added or (), patches).tolist() for v in views]
        view = views[asked["model"]]
        return fewest(view) if does == "fewest" else why(view, asked["label"])

    def _look(self, width: int, height: int, pixels: bytes) -> dict[str, Any]:
        clip, _ = next(iter(next(iter(self.lenses.values())).models.values()))
        rgba = Image.frombytes("RGBA", (width, height), pixels)
        white = Image.new("RGBA", rgba.size, "white")
        image = Image.alpha_composite(white, rgba).convert("RGB")
        picture = square(image, clip.visual.image_size[0])
        self.last += 1
        self.pictures[self.last] = picture
        raw = picture.permute(1, 2, 0).contiguous().numpy().tobytes()
        return {"id": self.last, "picture": base64.b64encode(raw).decode()}

    def _views(self, asked: Mapping[str, Any]) -> list[View]:
        lens = list(self.lenses.values())[asked["task"]]
        if asked["id"] not in self.pictures:
            raise ValueError("this picture was forgotten: add it again")
        picture, names = self.pictures[asked["id"]][None], asked.get("names")
        views = []
        for (clip, head), z in zip(lens.models.values(), lens.tokens(picture), strict=True):
            f = lens.sae.encode(z[0, : clip.n_tokens].to(lens.sae.W_dec.device)).cpu()
            if names:
                is_adapted = isinstance(clip, AdaptedCLIP)
                template = clip.prompts.template if is_adapted else lens.template
                head = clip.text_features(names, [template])
            views.append(View(lens, clip, head, z, f))
        return views


def fewest(view: View) -> dict[str, Any]:
    """Take away, one at a time, the latent without which the answer is least sure, until it is
    another; and as many at random."""
    order, off = view.order(), list[int]()

    def without(latents: Sequence[int]) -> Tensor:
        return view.switched([(latent, 0) for latent in latents])

    removed, predicted = [list[int]()], [without([])]
    answer = int(predicted[0].argmax())
    while len(off) < STEPS and int(predicted[-1].argmax()) == answer:
        left = [latent for latent in order if latent not in off][:TRIED]
        if not left:
            break
        tried = [without([*off, latent]) for latent in left]
        best = min(range(len(left)), key=lambda i: float(tried[i][answer]))
        off.append(left[best])
        removed.append(list(off))
        predicted.append(tried[best])
    generator = torch.Generator().manual_seed(0)
    draws = [torch.randperm(len(order), generator=generator)[: len(off)] for _ in range(DRAWS)]
    answers = [int(without([order[i] for i in draw]).argmax()) for draw in draws]
    rows = [{"off": x, "said": p.tolist()} for x, p in zip(removed, predicted, strict=True)]
    changed = sum(a != answer for a in answers)
    return {"steps": rows, "answer": answer, "random": [changed, DRAWS]}


def why(view: View, label: int) -> dict[str, Any]:
    """By how much a class's probability falls without a patch's latents, and without a latent."""
    usual, order = float(view.probabilities(view.f)[label]), view.order()
    patches = []
    for patch in range(len(view.f) - 1):
        f = view.f.clone()
        f[patch + 1] = 0
        patches.append(usual - float(view.probabilities(f)[label]))
    latents = [(n, usual - float(view.switched([(n, 0)])[label])) for n in order[: 2 * TRIED]]
    latents.sort(key=lambda pair: -pair[1])
    return {"all": usual, "patches": patches, "latents": latents}
