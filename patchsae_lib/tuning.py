"""Adaptations that change the weights of the picture tower, or the head (not in the paper).

LoRA adds maps of low rank to the attention of each block (Hu et al. 2022, arXiv 2106.09685; in
CLIP: Zanella & Ben Ayed 2024, arXiv 2405.18541), fine-tuning changes every weight, and a linear
probe replaces the text features by a classifier (Radford et al. 2021, section 3.2). All learn from
the same few pictures as prompts (`maple`), and all are CLIPs in two halves.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from torch import Tensor, nn
from torch.nn.utils.parametrize import register_parametrization
from torch.optim import AdamW

from patchsae_lib.clip import SplitCLIP
from patchsae_lib.maple import AdaptedCLIP, run_of, teach
from patchsae_lib.pictures import TEMPLATE, Pictures, few_shot, labels_of, spoken
from patchsae_lib.profiles import TuningConfig
from patchsae_lib.training import History


class TunedCLIP(SplitCLIP):
    """A second CLIP of the shape of `original`, from which it was adapted, in two halves.

    `text` (c, d_embed), on the CPU, is the head of its classes. Any two open_clip models of one
    shape can be compared so. Raises `ValueError` if they have other shapes.
    """

    def __init__(self, original: SplitCLIP, model: nn.Module, text: Tensor) -> None:
        super().__init__(model, original.tokenizer, original.block)
        first, second = (
            {name: tuple(x.shape) for name, x in clip.visual.named_parameters()}
            for clip in (original, self)
        )
        if differ := sorted(name for name, _ in first.items() ^ second.items()):
            name = differ[0]
            sizes = f"{name} is {first.get(name)} and {second.get(name)}"
            raise ValueError(f"picture towers of other shapes: {sizes}")
        self.original, self.text = original, text
        if original.first is not None:
            self.in_bfloat16()

    def unadapted(self) -> SplitCLIP:
        """Return the CLIP from which this one was adapted."""
        return self.original

    @property
    def changes(self) -> dict[str, Tensor]:
        """The weights of its picture tower; none if they are those of `original`."""
        return {} if self.visual is self.original.visual else self.visual.state_dict()


Adapted: TypeAlias = AdaptedCLIP | TunedCLIP  # to a task, with the head of its classes as `text`


@dataclass(frozen=True)
class LoRA:
    """Maps of low rank that are added to the queries', keys' and values' of each block.

    W + up down, with `down` (blocks, 3, rank, d_vit) and `up` (blocks, 3, d_vit, rank). `config`
    says how they were made.
    """

    down: Tensor
    up: Tensor
    config: dict[str, Any] | None = None

    @property
    def change(self) -> Tensor:
        """What is added to `in_proj_weight` of each block (blocks, 3 d_vit, d_vit)."""
        return (self.up @ self.down).flatten(1, 2)


class LowRank(nn.Module):
    """W + up down / √rank for a stack of three weights W (3 d, d); up is 0 at first."""

    def __init__(self, width: int, rank: int, generator: torch.Generator) -> None:
        super().__init__()
        bound, self.scale = width**-0.5, rank**-0.5
        down = torch.empty(3, rank, width).uniform_(-bound, bound, generator=generator)
        self.down, self.up = nn.Parameter(down), nn.Parameter(torch.zeros(3, width, rank))

    def forward(self, weight: Tensor) -> Tensor:
        """Return the changed weight."""
        return weight + self.scale * (self.up @ self.down).flatten(0, 1)


def own_tower(clip: SplitCLIP) -> Any:
    """Copy an open_clip model's picture tower, and share the rest of its weights."""
    kept = {id(part): part for name, part in clip.model.named_children() if name != "visual"}
    return copy.deepcopy(clip.model, kept)


def with_lora(
    clip: SplitCLIP, lora: LoRA, class_names: Sequence[str], template: str = TEMPLATE
) -> TunedCLIP:
    """Return `clip`, which stays as it is, with LoRA's maps, and CLIP's head of any classes.
    Raises `ValueError` for maps that do not fit."""
    shape = (clip.n_blocks, 3 * clip.d_vit, clip.d_vit)
    if tuple(lora.change.shape) != shape:
        raise ValueError(f"LoRA changes weights {tuple(lora.change.shape)}, CLIP's are {shape}")
    model = own_tower(clip)
    for block, change in zip(model.visual.transformer.resblocks, lora.change, strict=True):
        block.attn.in_proj_weight.data += change.to(block.attn.in_proj_weight)
    return TunedCLIP(clip, model, head_of(clip, class_names, template))


def head_of(clip: SplitCLIP, class_names: Sequence[str], template: str = TEMPLATE) -> Tensor:
    """CLIP's text features (c, d_embed) of classes in one sentence, as prompts start from."""
    return clip.text_features(spoken(class_names), [template])


def tune(
    clip: SplitCLIP,
    pictures: Pictures,
    class_names: Sequence[str],
    config: TuningConfig,
    template: str = TEMPLATE,
    progress: bool = True,
) -> tuple[Any, History]:
    """Learn LoRA's maps, or with rank 0 every weight of the picture tower, from few pictures.

    As `train_prompts`, but by AdamW, and with the head of CLIP, which stays. Returns a `LoRA`, or
    an open_clip model, and the history. Deviation: CLIP-LoRA adapts both towers, with dropout.
    """
    labels, model = labels_of(pictures), own_tower(clip)
    chosen = few_shot(labels, len(class_names), config.shots, config.seed)
    layers = [block.attn for block in model.visual.transformer.resblocks]
    maps = []
    if config.rank:
        generator = torch.Generator().manual_seed(config.seed)
        maps = [LowRank(clip.d_vit, config.rank, generator).to(clip.device) for _ in layers]
        for layer, added in zip(layers, maps, strict=True):
            register_parametrization(layer, "in_proj_weight", added)
    learnt = nn.ModuleList(maps).parameters() if maps else model.visual.parameters()
    weights = [x.requires_grad_() for x in learnt]
    tuned = SplitCLIP(model, clip.tokenizer, clip.block)
    head = head_of(clip, class_names, template)

    def logits(images: Tensor) -> Tensor:
        return tuned.classify(tuned.tokens(clip.preprocess(images)), head)

    adamw = AdamW(weights, config.lr, weight_decay=config.weight_decay)
    images = torch.cat([pictures.batch(part.tolist()) for part in chosen.split(64)])
    data, history = (images, labels[chosen]), []
    for epoch in range(config.epochs):
        history.append(teach(logits, adamw, data, config, epoch, progress))
    model.visual.requires_grad_(False)  # the rest is the first model's
    if not maps:
        return model, history
    down, up = (torch.stack([getattr(x, k).detach().cpu() for x in maps]) for k in ("down", "up"))
    run = run_of(clip, class_names, config, template, chosen)
    return LoRA(down, up * maps[0].scale, run), history


def probe_head(features: Tensor, labels: Tensor, n_classes: int) -> Tensor:
    """Fit a linear probe, logistic regression without a constant: the head (n_classes, d_embed),
    on the CPU, from image features (n, d_embed) of unit norm and labels (n,). Its penalty is
    chosen by cross-validation in four parts, or as many as the smallest class has pictures; with
    one picture of a class it is scikit-learn's."""
    parts = min(4, int(labels.bincount(minlength=n_classes).min()))
    regression = LogisticRegression(fit_intercept=False, max_iter=2000)
    if parts > 1:
        grid = {"C": [10.0**i for i in range(-2, 6)]}
        regression = GridSearchCV(regression, grid, cv=parts)
    regression.fit(features.cpu().numpy(), labels.cpu().numpy())
    rows = torch.from_numpy(getattr(regression, "best_estimator_", regression).coef_).float()
    return torch.cat([-rows, rows]) if n_classes == 2 else rows
