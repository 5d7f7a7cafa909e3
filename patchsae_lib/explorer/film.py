"""The film of an adaptation: what some latents and all classes do at checkpoints of a training.

A frame is CLIP itself, or CLIP with the prompts as they were after some epochs. `Film` shows the
frames as `explorer.filmstrip` draws them, in a page without a kernel, too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from patchsae_lib.clip import SplitCLIP
from patchsae_lib.explorer.filmstrip import film_html
from patchsae_lib.maple import PromptLearner, Prompts, adapt
from patchsae_lib.profiles import StatisticsConfig
from patchsae_lib.sae import SAE
from patchsae_lib.splits import Split

N_LATENTS = 5  # that change most, and as many that are strongest
MEASURED_ON = 5  # pictures of a class in which latents are counted and removed


@dataclass
class Checkpoints:
    """What `maple.train_prompts` calls as `watch`: keeps prompts before the first step and each
    time that another `interval` epochs are done. `kept` has pairs of epochs and prompts."""

    interval: float = 0.5
    kept: list[tuple[float, Prompts]] = field(default_factory=list)

    @torch.no_grad()
    def __call__(self, epochs: float, learner: PromptLearner) -> None:
        """Keep the prompts of the learner if it is time."""
        number = self._number(epochs)
        if self.kept and number <= self._number(self.kept[-1][0]):
            return
        prompts = learner()
        text, visual = (x.detach().cpu().clone() for x in (prompts.text, prompts.visual))
        self.kept.append((epochs, replace(prompts, text=text, visual=visual)))

    def _number(self, epochs: float) -> int:
        return int(epochs / self.interval + 1e-6)  # 6 of 12 steps are half an epoch


@dataclass(frozen=True)
class Frame:
    """One state of a training, on pictures of c classes; `epochs` is None for CLIP itself.

    `levels` (c, l): tokens of a picture of a class in which each of l latents is active. `effects`
    (c, l, c): what a latent adds on pictures of a class (first) to the logit of each class (last),
    above the mean over classes. `answers` (c, c): the shares of a class's pictures that get each
    class as answer. `accuracy` is 0 to 1.
    """

    epochs: float | None
    levels: Tensor
    effects: Tensor
    answers: Tensor
    accuracy: float


@dataclass(frozen=True, repr=False)
class Film:
    """Frames of a training, the first of which is CLIP; `names` are those of the `latents`."""

    title: str
    latents: list[int]
    names: list[str]
    class_names: Sequence[str]
    frames: list[Frame]
    n_pictures: int

    def summary(self) -> str:
        """Say how accuracy, bars and edges differ between CLIP and the last frame, and what
        prompts do that have learnt nothing."""
        first, untrained, last = (self.frames[i] for i in (0, 1, -1))
        moved, by_chance = (
            float((x.levels - first.levels).abs().mean()) for x in (last, untrained)
        )
        shift = float((last.effects - first.effects).abs().mean())
        size = float(first.effects.abs().mean())
        return (
            f"accuracy goes from {first.accuracy:.0%} to {last.accuracy:.0%} on {self.n_pictures} "
            f"pictures. The activation of a latent in a class changes by {moved:.1f} tokens on "
            f"average, {by_chance:.1f} with untrained prompts; an edge changes by {shift:.3f} "
            f"logits, and is {size:.3f} in CLIP."
        )

    def _repr_html_(self) -> str:
        return film_html(self)


def film_training(
    clip: SplitCLIP, sae: SAE, split: Split, kept: Sequence[tuple[float, Prompts]],
    names: Sequence[str], config: StatisticsConfig, title: str = "",
) -> Film:  # fmt: skip
    """Measure `Frame`s on a split of test pictures, in `clip` and with the prompts `kept`.

    Of the latents, named by `names` (d_sae,), `choose` takes those that are shown.
    """
    states: list[tuple[float | None, Split]] = [(None, split)]
    for epochs, prompts in kept:
        adapted = adapt(clip, prompts, split.class_names)
        states.append((epochs, split.seen_by(adapted, adapted.text)))
    ends = [states[i][1].first_of_each_class(MEASURED_ON) for i in (0, -1)]
    before, after = (levels(sae, part, config.tau) for part in ends)
    latents, frames = choose(before, after), []
    for done, state in states:
        frames.append(frame(sae, state, latents, config.tau, done))
        if state is not split:
            del state.tokens  # as many as there are pictures, of each state
    chosen = latents.tolist()
    named = [names[i] for i in chosen]
    return Film(title, chosen, named, split.class_names, frames, len(split))


def choose(before: Tensor, after: Tensor, n: int = N_LATENTS) -> Tensor:
    """Choose latents by their class-level activation (c, d_sae) in the first and the last frame:
    the n that change most in a class, then the n others that are strongest in both, on average
    over classes. Latents that are active in neither are not chosen; ties go by number."""
    change = (after - before).abs().amax(0)
    changed = change.argsort(descending=True, stable=True)[: min(n, int((change > 0).sum()))]
    strength = torch.minimum(before, after).mean(0).index_fill(0, changed, -1.0)
    strong = strength.argsort(descending=True, stable=True)[:n]
    return torch.cat([changed, strong[strength[strong] > 0]])


@torch.no_grad()
def levels(sae: SAE, split: Split, tau: float) -> Tensor:
    """Count class-level activations (c, d_sae): the tokens of a picture in which a latent is above
    τ, on average over the pictures of each class."""
    n, cut = split.clip.n_tokens, sae.cuts(tau)
    parts = split.tokens.split(sae.images_at_once(n, least=8))
    counts = [(encoded(sae, z, n) > cut).sum(1).cpu() for z in parts]
    return by_class(torch.cat(counts), split)


@torch.no_grad()
def frame(sae: SAE, split: Split, latents: Tensor, tau: float, epochs: float | None) -> Frame:
    """Measure one `Frame`: answers on all pictures, latents on the first of each class."""
    predicted = split.predictions()
    answers = by_class(F.one_hot(predicted, len(split.class_names)), split)
    part = split.first_of_each_class(MEASURED_ON)
    counts, effects = in_pictures(sae, part, latents, tau)
    effects = by_class(effects.flatten(1), part).unflatten(1, (len(latents), -1))
    accuracy = float((predicted == split.labels).double().mean())
    return Frame(epochs, by_class(counts, part), effects, answers, accuracy)


@torch.no_grad()
def in_pictures(sae: SAE, split: Split, latents: Tensor, tau: float) -> tuple[Tensor, Tensor]:
    """Count the tokens of a picture in which each of `latents` (l,) is above τ, (pictures, l), and
    measure what it adds to the logits of all classes, above their mean, (pictures, l, c).

    Its decoder row, times its activation, is taken from every token; all else, also what the
    autoencoder does not reconstruct, stays.
    """
    clip, head, cut = split.clip, split.head.to(split.clip.device), sae.cuts(tau)
    counts, effects = [], []
    for z in split.tokens.split(min(clip.at_once, sae.images_at_once(clip.n_tokens, least=8))):
        z = z.to(sae.W_dec.device).float()
        f, usual, added = encoded(sae, z, clip.n_tokens), clip.classify(z, head), []
        for latent in latents.tolist():
            without = z.clone()
            without[:, : clip.n_tokens] -= f[..., latent, None] * sae.W_dec[latent]
            added.append(usual - clip.classify(without, head))
        counts.append((f > cut).sum(1)[:, latents.to(f.device)].cpu())
        effects.append(torch.stack(added, 1).cpu())
    effect = torch.cat(effects)
    return torch.cat(counts), effect - effect.mean(2, keepdim=True)


def encoded(sae: SAE, z: Tensor, n_tokens: int) -> Tensor:
    """Return the latents of the first `n_tokens` tokens of pictures, without those of prompts."""
    return sae.encode(z[:, :n_tokens].to(sae.W_dec.device).float())


def by_class(values: Tensor, split: Split) -> Tensor:
    """Average values (pictures, k) over the pictures of each class: (c, k), 0 without pictures."""
    of_class = F.one_hot(split.labels, len(split.class_names)).T.float()
    return of_class @ values.float() / of_class.sum(1, keepdim=True).clamp_min(1)
