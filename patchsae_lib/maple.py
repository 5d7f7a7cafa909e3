"""MaPLe: prompts that adapt a frozen CLIP to a task (Khattak et al. 2023; paper section 4.2).

Context tokens replace the first words of a text, and are appended to the patches of a picture;
before each of the first `depth` blocks of an encoder they are replaced by others. Learnt are the
context of the texts, and linear maps from it to that of the pictures: each encoder knows the
other's context.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import SGD, Optimizer
from torchvision.transforms import v2
from tqdm import tqdm

from patchsae_lib.artefacts import resume, save_checkpoint, weights_hash
from patchsae_lib.clip import SplitCLIP
from patchsae_lib.pictures import TEMPLATE, Pictures, few_shot, labels_of, spoken
from patchsae_lib.profiles import PromptsConfig, TuningConfig
from patchsae_lib.training import History, pack, unpack

Data = tuple[Tensor, Tensor]  # pictures (n, 3, h, w) uint8, labels (n,)
Watch = Callable[[float, "PromptLearner"], None]  # gets the epochs that are done, and the learner


@dataclass(frozen=True)
class Prompts:
    """Learnt context tokens, as the encoders get them; none belongs to a single class.

    `text` (depth, n_ctx, d_text): row 0 replaces the first n_ctx words of `template`, and row i,
    before block i, what these have become. `visual` (depth, n_ctx, d_vit): row 0 is appended to
    the patches before the layer norm in front of block 0, and row i replaces it before block i.
    Either may have no rows: that encoder stays as it was. `config` says how they were made.
    """

    text: Tensor
    visual: Tensor
    template: str = TEMPLATE
    config: dict[str, Any] | None = None


class AdaptedCLIP(SplitCLIP):
    """A CLIP with prompts, in two halves like any other.

    `tokens` gives z (b, 1 + n_patches + n_prompts, d_vit). The prompts' tokens come last, because
    the second half needs them; autoencoder, statistics and masks see the first `n_tokens`. The
    weights are shared with `clip`. Raises `ValueError` for prompts that do not fit them.
    """

    text: Tensor  # the head (c, d_embed) of its classes, on the CPU, from `adapt`

    def __init__(self, clip: SplitCLIP, prompts: Prompts) -> None:
        super().__init__(clip.model, clip.tokenizer, clip.block, clip.first)
        self.prompts = prompts
        self.n_prompts = prompts.visual.shape[1] if len(prompts.visual) else 0
        tower, template = text_tower(self.model), prompts.template
        d_text, n_blocks = tower.token_embedding.embedding_dim, len(tower.transformer.resblocks)
        _check_shape("text", prompts.text, n_blocks, d_text)
        _check_shape("visual", prompts.visual, self.n_blocks, self.d_vit)
        n_ctx, n_words = prompts.text.shape[1], _words_before_name(clip, template)
        if len(prompts.text) and n_ctx > n_words:
            where = f"the template {template!r} has only {n_words} before the class name"
            raise ValueError(f"{n_ctx} context tokens: {where}")

    @property
    def changes(self) -> dict[str, Tensor]:
        """On what its tokens depend beside CLIP's weights; nothing if only texts have prompts."""
        return {"": self.prompts.visual} if len(self.prompts.visual) else {}

    def unadapted(self) -> SplitCLIP:
        """Return the CLIP that this one adapts."""
        return SplitCLIP(self.model, self.tokenizer, self.block, self.first)

    def encode_text(self, ids: Tensor) -> Tensor:
        """The features (n, d_embed), unit norm, of n texts, their first words replaced."""
        tower = text_tower(self.model)
        rows = list(self.prompts.text)
        if rows:
            position = tower.positional_embedding[1 : 1 + len(rows[0])]
            rows[0] = rows[0].to(position) + position
        # Hooks, since open_clip's text towers differ in what they do around their blocks.
        with ExitStack() as stack:
            for block, row in zip(tower.transformer.resblocks, rows, strict=False):
                hook = _replace_words(row, tower.transformer.batch_first)
                stack.callback(block.register_forward_pre_hook(hook).remove)
            return super().encode_text(ids)

    def _embed(self, images: Tensor) -> Tensor:
        x = super()._embed(images)
        if not self.n_prompts:
            return x
        prompt = self.visual.ln_pre(self.prompts.visual[0].to(x))
        return torch.cat([x, prompt.expand(len(x), -1, -1)], 1)

    def _enter(self, x: Tensor, block: int) -> Tensor:
        if not 0 < block < len(self.prompts.visual):
            return x
        prompt = self.prompts.visual[block].to(x).expand(len(x), -1, -1)
        return torch.cat([x[:, : self.n_tokens], prompt], 1)


def adapt(clip: SplitCLIP, prompts: Prompts, class_names: Sequence[str]) -> AdaptedCLIP:
    """Return `clip`, which stays as it is, with `prompts`, and with the head of any classes as
    `text`. Raises `ValueError` for prompts that do not fit."""
    adapted = AdaptedCLIP(clip, prompts)
    adapted.text = adapted.text_features(spoken(class_names), [prompts.template])
    return adapted.eval()


def text_tower(model: Any) -> Any:
    """Return the part of an open_clip model that embeds words and has the text's blocks."""
    tower: Any = model if hasattr(model, "token_embedding") else getattr(model, "text", None)
    if not hasattr(tower, "token_embedding") or not hasattr(tower.transformer, "resblocks"):
        raise TypeError(f"the text tower is no transformer of open_clip's own: {type(tower)}")
    return tower


def _check_shape(encoder: str, prompts: Tensor, n_blocks: int, width: int) -> None:
    fits = prompts.ndim == 3 and (not len(prompts) or prompts.shape[2] == width)
    if not fits or len(prompts) > n_blocks:
        got = f"{encoder} prompts (depth, n_ctx, width) are {tuple(prompts.shape)}"
        raise ValueError(f"{got}, but this encoder has {n_blocks} blocks of width {width}")


def _replace_words(row: Tensor, batch_first: bool) -> Any:
    """A block's hook that replaces the tokens after the first one by `row` (n_ctx, d_text)."""

    def hook(_block: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        x = inputs[0] if batch_first else inputs[0].transpose(0, 1)
        context = row.to(x).expand(len(x), -1, -1)
        x = torch.cat([x[:, :1], context, x[:, 1 + len(row) :]], 1)
        return (x if batch_first else x.transpose(0, 1), *inputs[1:])

    return hook


def _words_before_name(clip: SplitCLIP, template: str) -> int:
    """How many tokens of `template` come before the class name."""
    if template.count("{}") != 1:
        raise ValueError(f"a template has one {{}} for the class name: {template!r}")
    ids = clip.tokenizer([template[: template.index("{}")].strip()])[0]
    return int(ids.argmax()) - 1  # between the start and the end, which has the highest id


class PromptLearner(nn.Module):
    """The parameters of `Prompts`: `text`, or `visual`; or for both encoders `text`, and `weight`
    and `bias` of visual = text W + b, a map (d_text → d_vit) for each depth."""

    def __init__(self, clip: SplitCLIP, config: PromptsConfig, template: str) -> None:
        super().__init__()
        self.config, self.template = config, template
        generator = torch.Generator().manual_seed(config.seed)
        embedding, shape = text_tower(clip.model).token_embedding, (config.depth, config.n_ctx)
        if config.encoders == "picture":
            self.visual = nn.Parameter(0.02 * torch.randn(*shape, clip.d_vit, generator=generator))
            return
        d_text = embedding.embedding_dim
        text = 0.02 * torch.randn(*shape, d_text, generator=generator)
        ids = clip.tokenizer([template.format("")])[0, 1 : 1 + config.n_ctx]
        text[0] = embedding(ids.to(clip.device)).detach()
        self.text = nn.Parameter(text)
        if config.encoders == "both":
            # As torch's linear layers start. The maps of depth 1 and more start equal, as MaPLe's.
            bound, of_depth = d_text**-0.5, torch.arange(config.depth).clamp(max=1)
            weight, bias = (
                torch.empty(2, n, clip.d_vit).uniform_(-bound, bound, generator=generator)
                for n in (d_text, 1)
            )
            self.weight, self.bias = nn.Parameter(weight[of_depth]), nn.Parameter(bias[of_depth])

    def forward(self) -> Prompts:
        """Make prompts of the parameters."""
        empty = torch.empty(0, self.config.n_ctx, 0)
        text, visual = getattr(self, "text", empty), getattr(self, "visual", empty)
        if self.config.encoders == "both":
            visual = text @ self.weight + self.bias
        return Prompts(text, visual, self.template)


def learning_rate(config: PromptsConfig | TuningConfig, epoch: int) -> float:
    """The rate of an epoch (from 0): a constant warm-up, then a cosine that starts from `lr`."""
    if epoch < config.warmup_epochs:
        return config.warmup_lr
    return config.lr * (1 + math.cos(math.pi * (epoch - config.warmup_epochs) / config.epochs)) / 2


def train_prompts(
    clip: SplitCLIP,
    pictures: Pictures,
    class_names: Sequence[str],
    config: PromptsConfig,
    template: str = TEMPLATE,
    checkpoint: str | Path | None = None,
    progress: bool = True,
    watch: Watch | None = None,
) -> tuple[Prompts, History]:
    """Learn prompts for base classes by SGD on the cross-entropy of MaPLe's logits.

    `class_names` are the first classes of `pictures`; `config.shots` pictures of each are used. A
    checkpoint is written after every epoch, and the run resumed from it; another run's file is set
    aside with a warning. `clip` does not change, and the prompts are on the CPU. History has a row
    an epoch: `epoch`, `loss` and `accuracy` (0..1) of its batches, `lr`. `watch` is called before
    the first step of this process and after each; it must not change the learner.
    Deviation: float32, where MaPLe's are float16.

    Raises `ValueError` for one class, a class without pictures, prompts that do not fit, and a
    file that is no checkpoint; `FloatingPointError` for a loss that is no number.
    """
    labels, path = labels_of(pictures), Path(checkpoint) if checkpoint else None
    chosen = few_shot(labels, len(class_names), config.shots, config.seed)
    learner = PromptLearner(clip, config, template).to(clip.device)
    sgd = SGD(learner.parameters(), config.lr, config.momentum, weight_decay=config.weight_decay)
    run, history = run_of(clip, class_names, config, template, chosen), []
    if found := resume(path, run):
        unpack(found[0], learner, sgd)
        history = found[1]["history"]
    images = torch.cat([pictures.batch(part.tolist()) for part in chosen.split(64)])
    ids = clip.tokenizer([template.format(name) for name in spoken(class_names)])

    def logits(x: Tensor) -> Tensor:
        adapted = AdaptedCLIP(clip, learner())
        return adapted.classify(adapted.tokens(clip.preprocess(x)), adapted.encode_text(ids))

    def show(epochs: float) -> None:
        if watch:
            watch(epochs, learner)

    data = images, labels[chosen]
    show(len(history))
    for epoch in range(len(history), config.epochs):
        history.append(teach(logits, sgd, data, config, epoch, progress, show))
        if path:
            save_checkpoint(path, run, pack(learner, sgd), history=history)
    with torch.no_grad():
        learnt = learner()
    return Prompts(learnt.text.cpu(), learnt.visual.cpu(), template, run), history


def teach(
    logits_of: Callable[[Tensor], Tensor],
    optimizer: Optimizer,
    data: Data,
    config: PromptsConfig | TuningConfig,
    epoch: int,
    progress: bool = True,
    show: Callable[[float], None] = lambda epochs: None,
) -> dict[str, float]:
    """Pass once over the whole batches of `data`; a row of the history.

    `logits_of` gives the logits (b, c) of pictures (b, 3, h, w), `optimizer` has what they depend
    on, and `show` gets the epochs that are done after each step. Raises `FloatingPointError` for a
    loss that is no number.
    """
    images, labels = data
    optimizer.param_groups[0]["lr"] = lr = learning_rate(config, epoch)
    seed, batch = config.seed * 100_003 + epoch, min(config.batch, len(labels))
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    order, losses, hits = order[: len(labels) // batch * batch], [], 0
    hidden = {} if progress else {"disable": True}  # else TQDM_DISABLE decides
    for step, rows in enumerate(tqdm(order.split(batch), f"epoch {epoch}", **hidden)):
        x = _augment(images[rows], seed * 100_003 + step) if config.augment else images[rows]
        logits = logits_of(x)
        target = labels[rows].to(logits.device)
        loss = F.cross_entropy(logits, target)
        right = (logits.argmax(1) == target).sum()
        value, n_right = torch.stack([loss.detach(), right]).tolist()  # a GPU is waited for once
        if not math.isfinite(value):
            raise FloatingPointError(f"the loss is {value} in epoch {epoch}: lower the rate, lr")
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(value)
        hits += int(n_right)
        show(epoch + (step + 1) * batch / len(order))
    mean = sum(losses) / len(losses)
    return {"epoch": epoch, "loss": mean, "accuracy": hits / len(order), "lr": lr}


def _augment(images: Tensor, seed: int) -> Tensor:
    """Crop and mirror each of the images (b, 3, h, w) uint8 at random."""
    size, bicubic = tuple(images.shape[-2:]), v2.InterpolationMode.BICUBIC
    change = v2.Compose(
        [v2.RandomResizedCrop(size, (0.08, 1.0), interpolation=bicubic), v2.RandomHorizontalFlip()]
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return torch.stack([change(image) for image in images])


def run_of(
    clip: SplitCLIP,
    class_names: Sequence[str],
    config: PromptsConfig | TuningConfig,
    template: str,
    rows: Tensor,
) -> dict[str, Any]:
    """All that the result of a training depends on but the pixels of its pictures (`rows`)."""
    data = {"classes": list(class_names), "template": template, "pictures": rows.tolist()}
    return {**asdict(config), **data, "clip": weights_hash(clip.model)}
