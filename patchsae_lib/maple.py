"""MaPLe: prompts that adapt a frozen CLIP to a task (Khattak et al. 2023; paper section 4.2).

Context tokens take the place of the first words of a text, and come after the patches of a
picture; before each of the first `depth` blocks of an encoder they are replaced by others. Only
the context of the texts is learnt, and linear maps from it to that of the pictures: each encoder
knows what the other is told.
"""

from __future__ import annotations

import hashlib
import json
import math
import warnings
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torchvision.transforms import v2
from tqdm import tqdm

from patchsae_lib.artefacts import _difference, atomic_path
from patchsae_lib.clip import SplitCLIP, accelerated
from patchsae_lib.images import TEMPLATE, Pictures, labels_of
from patchsae_lib.profiles import PromptsConfig

History = list[dict[str, float]]


@dataclass(frozen=True)
class Prompts:
    """What is learnt, as the encoders get it; nothing of it belongs to single classes.

    `text` (depth, n_ctx, d_text): row 0 takes the place of the first n_ctx words of `template`,
    row i of what they have become, before block i. `visual` (depth, n_ctx, d_vit): row 0 comes
    after the patches, before the layer norm in front of block 0; row i takes its place before
    block i. Either may have no rows: that encoder is as it was. `config` says how they were made.
    """

    text: Tensor
    visual: Tensor
    template: str = TEMPLATE
    config: dict[str, Any] | None = None


def base_classes(n_classes: int) -> int:
    """How many of the classes, from the first, are base classes; the others are novel.

    Half of them, and the one in the middle if their number is odd (as in CoOp).

    >>> base_classes(8), base_classes(35)
    (4, 18)
    """
    if n_classes < 2:
        raise ValueError(
            f"base and novel classes: two classes or more are needed, not {n_classes}"
        )
    return (n_classes + 1) // 2


class AdaptedCLIP(SplitCLIP):
    """A CLIP with prompts in it, in two halves like any other; made by `adapt`.

    `tokens` gives z (b, 1 + n_patches + n_prompts, d_vit). The prompts' tokens travel at its end
    because the second half needs them; autoencoder, statistics and masks see the first `n_tokens`.
    `text` (c, d_embed) is the head of its classes. The weights are shared with the CLIP it adapts.
    """

    def __init__(self, clip: SplitCLIP, prompts: Prompts) -> None:
        super().__init__(clip.model, clip.tokenizer, clip.block, clip.first)
        self.prompts = prompts
        self.n_prompts = prompts.visual.shape[1] if len(prompts.visual) else 0
        tower = text_tower(self.model)
        blocks = tower.transformer.resblocks
        n_words = _words_before_name(clip, prompts.template)
        for what, given, width, most in (
            ("text", prompts.text, tower.token_embedding.embedding_dim, len(blocks)),
            ("visual", prompts.visual, self.d_vit, self.n_blocks),
        ):
            if given.ndim != 3 or (len(given) and given.shape[2] != width) or len(given) > most:
                raise ValueError(
                    f"{what} prompts (depth, n_ctx, width) are {tuple(given.shape)}, but this "
                    f"CLIP has {most} blocks of width {width} there"
                )
        if len(prompts.text) and prompts.text.shape[1] > n_words:
            raise ValueError(
                f"{prompts.text.shape[1]} context tokens: the template {prompts.template!r} has "
                f"only {n_words} before the class name"
            )

    def unadapted(self) -> SplitCLIP:
        """The CLIP that this one adapts."""
        return SplitCLIP(self.model, self.tokenizer, self.block, self.first)

    def encode_text(self, ids: Tensor) -> Tensor:
        """The features (n, d_embed), unit norm, of n texts, their first words replaced."""
        tower = text_tower(self.model)
        blocks, first = tower.transformer.resblocks, tower.transformer.batch_first
        rows = list(self.prompts.text)
        if rows:
            position = tower.positional_embedding[1 : 1 + len(rows[0])]
            rows[0] = rows[0].to(position) + position

        def replace(i: int) -> Any:
            def hook(_block: nn.Module, given: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
                x = given[0] if first else given[0].transpose(0, 1)
                row = rows[i].to(x).expand(len(x), -1, -1)
                x = torch.cat([x[:, :1], row, x[:, 1 + row.shape[1] :]], 1)
                return (x if first else x.transpose(0, 1), *given[1:])

            return hook

        # open_clip's own towers differ in what they do around their blocks: it stays theirs.
        with ExitStack() as stack:
            for i in range(len(rows)):
                handle = blocks[i].register_forward_pre_hook(replace(i))
                stack.callback(handle.remove)
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
    """`clip` with `prompts`, and with the head of `class_names`, which may be new to the prompts.

    Weights are shared with `clip`, which stays as it is. Raises `ValueError` for prompts of
    another width, deeper than an encoder, or longer than the template's words.
    """
    adapted = AdaptedCLIP(clip, prompts)
    names = [name.replace("_", " ") for name in class_names]
    adapted.register_buffer("text", adapted.text_features(names, [prompts.template]), False)
    return adapted.eval()


def text_tower(model: Any) -> Any:
    """The part of an open_clip model that has the words' embeddings and the text's blocks."""
    tower: Any = model if hasattr(model, "token_embedding") else getattr(model, "text", None)
    if not hasattr(tower, "token_embedding") or not hasattr(tower.transformer, "resblocks"):
        raise TypeError(f"the text tower is no transformer of open_clip's own: {type(tower)}")
    return tower


def _words_before_name(clip: SplitCLIP, template: str) -> int:
    """How many tokens of `template` come before the class name."""
    if template.count("{}") != 1:
        raise ValueError(f"a template has one {{}} for the class name: {template!r}")
    ids = clip.tokenizer([template[: template.index("{}")].strip()])[0]
    return int(ids.argmax()) - 1  # between the start and the end, which has the highest id


# --- few-shot training --------------------------------------------------------------------------


def few_shot(labels: Tensor, n_classes: int, shots: int, seed: int) -> Tensor:
    """Which pictures to learn from: `shots` of each of the first `n_classes`, at random.

    Indices (at most n_classes × shots,) into labels (n,), class by class; of a class with fewer
    pictures all. Raises `ValueError` for one class, and for a class without any.
    """
    if n_classes < 2:
        raise ValueError(f"learning to tell classes apart takes two or more, not {n_classes}")
    generator = torch.Generator().manual_seed(seed)
    chosen = []
    for c in range(n_classes):
        mine = (labels == c).nonzero()[:, 0]
        if not len(mine):
            raise ValueError(f"class {c} has no pictures to learn from")
        chosen.append(mine[torch.randperm(len(mine), generator=generator)[:shots]])
    return torch.cat(chosen)


class PromptLearner(nn.Module):
    """The parameters that `Prompts` are made of: `text`, or `visual`, or for both encoders `text`,
    `weight` and `bias`: visual = text W + b, a map (d_text → d_vit) for each depth.
    """

    def __init__(self, clip: SplitCLIP, config: PromptsConfig, template: str) -> None:
        super().__init__()
        tower = text_tower(clip.model)
        width = tower.token_embedding.embedding_dim
        for which, blocks in (
            ("text", len(tower.transformer.resblocks)),
            ("picture", clip.n_blocks),
        ):
            if config.encoders in ("both", which) and config.depth > blocks:
                raise ValueError(
                    f"prompts.depth {config.depth}: the {which} encoder has {blocks} blocks"
                )
        if config.encoders != "picture" and config.n_ctx > _words_before_name(clip, template):
            raise ValueError(f"prompts.n_ctx {config.n_ctx}: {template!r} has fewer first words")
        self.config, self.template = config, template
        generator = torch.Generator().manual_seed(config.seed)

        def noise(d: int) -> nn.Parameter:
            shape = config.depth, config.n_ctx, d
            return nn.Parameter(0.02 * torch.randn(shape, generator=generator))

        if config.encoders == "picture":
            self.visual = noise(clip.d_vit)
            return
        self.text = noise(width)
        ids = clip.tokenizer([template.format("")])[0, 1 : 1 + config.n_ctx]
        with torch.no_grad():
            self.text[0] = tower.token_embedding(ids.to(clip.mean.device)).cpu()
        if config.encoders == "both":
            # As in torch's linear layers. The maps of depth 1 and more begin equal, as MaPLe's do.
            bound = width**-0.5
            weight = torch.empty(2, width, clip.d_vit).uniform_(-bound, bound, generator=generator)
            bias = torch.empty(2, 1, clip.d_vit).uniform_(-bound, bound, generator=generator)
            of_depth = torch.arange(config.depth).clamp(max=1)
            self.weight, self.bias = nn.Parameter(weight[of_depth]), nn.Parameter(bias[of_depth])

    def forward(self) -> Prompts:
        """The prompts that the parameters now make."""
        none = torch.empty(0, self.config.n_ctx, 0)
        text, visual = getattr(self, "text", none), getattr(self, "visual", none)
        if self.config.encoders == "both":
            visual = text @ self.weight + self.bias
        return Prompts(text, visual, self.template)


def learning_rate(config: PromptsConfig, epoch: int) -> float:
    """Of an epoch (from 0): a constant warm-up, then a cosine that starts from `lr`."""
    if epoch < config.warmup_epochs:
        return config.warmup_lr
    return config.lr * (1 + math.cos(math.pi * (epoch - config.warmup_epochs) / config.epochs)) / 2


@accelerated
def train_prompts(
    clip: SplitCLIP,
    pictures: Pictures,
    class_names: Sequence[str],
    config: PromptsConfig,
    template: str = TEMPLATE,
    checkpoint: str | Path | None = None,
    progress: bool = True,
) -> tuple[Prompts, History]:
    """Learn prompts from `config.shots` pictures of each of `class_names`, the first classes of
    `pictures` (its base classes), by SGD on the cross-entropy of MaPLe's logits.

    It is resumed from `checkpoint`, which is written after every epoch; another run's file is set
    aside with a warning. The weights of `clip` do not change. History has a row an epoch: `epoch`,
    `loss` and `accuracy` (0..1) of its batches, `lr`.

    Deviation: float32, where MaPLe's are float16.

    Raises `ValueError` for one class, a class without pictures, a depth or number of context
    tokens that does not fit, and a file that is no checkpoint; `FloatingPointError` when the loss
    stops being a number.
    """
    chosen = few_shot(labels_of(pictures), len(class_names), config.shots, config.seed)
    labels = labels_of(pictures)[chosen]
    learner = PromptLearner(clip, config, template).to(clip.mean.device)
    sgd = torch.optim.SGD(
        learner.parameters(),
        lr=config.lr,
        momentum=config.momentum,
        weight_decay=config.weight_decay,
    )
    run = run_of(clip, class_names, config, template, chosen)
    path = Path(checkpoint) if checkpoint else None
    history = _resume(path, learner, sgd, run) if path and path.exists() else []
    images = torch.cat([pictures.batch(part.tolist()) for part in chosen.split(64)])
    names = [name.replace("_", " ") for name in class_names]
    ids = clip.tokenizer([template.format(name) for name in names]).to(clip.mean.device)
    n_batches = len(labels) // min(config.batch, len(labels))
    with tqdm(
        total=config.epochs * n_batches,
        initial=len(history) * n_batches,
        desc="prompts",
        unit=" batches",
        **({} if progress else {"disable": True}),  # else TQDM_DISABLE decides
    ) as bar:
        for epoch in range(len(history), config.epochs):
            history.append(_epoch(clip, learner, sgd, (images, labels, ids), epoch, bar))
            if path:
                _keep(path, learner, sgd, run, history)
    with torch.no_grad():
        learnt = learner()
    return Prompts(learnt.text.cpu(), learnt.visual.cpu(), template, run), history


def _epoch(
    clip: SplitCLIP,
    learner: PromptLearner,
    sgd: torch.optim.SGD,
    data: tuple[Tensor, Tensor, Tensor],
    epoch: int,
    bar: Any,
) -> dict[str, float]:
    """One pass over the pictures (n, 3, h, w), labels (n,), and ids of the classes' texts; what is
    left over after whole batches is not seen. A row of the history."""
    images, labels, ids = data
    config, batch = learner.config, min(learner.config.batch, len(labels))
    sgd.param_groups[0]["lr"] = lr = learning_rate(config, epoch)
    generator = torch.Generator().manual_seed(config.seed * 100_003 + epoch)
    order = torch.randperm(len(labels), generator=generator)[: len(labels) // batch * batch]
    losses, hits = [], 0
    for step, rows in enumerate(order.split(batch)):
        x = images[rows]
        if config.augment:
            x = _augment(x, generator.initial_seed() * 100_003 + step)
        adapted = AdaptedCLIP(clip, learner())
        z = adapted.tokens(clip.preprocess(x))
        logits = adapted.classify(z, adapted.encode_text(ids))
        target = labels[rows].to(logits.device)
        loss = F.cross_entropy(logits, target)
        if not torch.isfinite(loss):
            raise FloatingPointError(f"the loss is {loss} in epoch {epoch}: lower prompts.lr")
        sgd.zero_grad()
        loss.backward()
        sgd.step()
        losses.append(loss.item())
        hits += int((logits.argmax(1) == target).sum())
        bar.update()
        bar.set_postfix(loss=f"{losses[-1]:.3f}")
    mean = sum(losses) / len(losses)
    return {"epoch": epoch, "loss": mean, "accuracy": hits / len(order), "lr": lr}


def _augment(images: Tensor, seed: int) -> Tensor:
    """Each of the images (b, 3, h, w) uint8 cut out and mirrored at random."""
    size = tuple(images.shape[-2:])
    bicubic = v2.InterpolationMode.BICUBIC
    change = v2.Compose(
        [v2.RandomResizedCrop(size, (0.08, 1.0), interpolation=bicubic), v2.RandomHorizontalFlip()]
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return torch.stack([change(image) for image in images])


def run_of(
    clip: SplitCLIP,
    class_names: Sequence[str],
    config: PromptsConfig,
    template: str,
    chosen: Tensor,
) -> dict[str, Any]:
    """All that the result of a training depends on but the pixels of the pictures `chosen`."""
    made_of = {"classes": list(class_names), "template": template, "pictures": chosen.tolist()}
    return {**asdict(config), **made_of, "clip": fingerprint(clip)}


def fingerprint(clip: SplitCLIP) -> str:
    """The first 16 hex digits of the SHA-256 of all weights: training must not change it."""
    digest = hashlib.sha256()
    for name, tensor in clip.model.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()[:16]


def _keep(
    path: Path, learner: PromptLearner, sgd: torch.optim.SGD, run: dict[str, Any], history: History
) -> None:
    tensors = {name: p.detach() for name, p in learner.named_parameters()}
    for name, p in learner.named_parameters():
        tensors[f"momentum.{name}"] = sgd.state[p]["momentum_buffer"]
    about = {"run": json.dumps(run), "history": json.dumps(history)}
    with atomic_path(path) as temporary:
        save_file(tensors, temporary, about)


def _resume(
    path: Path, learner: PromptLearner, sgd: torch.optim.SGD, run: dict[str, Any]
) -> History:
    """Take up what `_keep` wrote; nothing, and the file set aside, if it is another run's."""
    try:
        with safe_open(path, framework="pt") as file:
            about = {key: json.loads(v) for key, v in (file.metadata() or {}).items()}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        theirs, history = about["run"], about["history"]
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise ValueError(
            f"{path} is not a whole checkpoint of prompts ({error!r}): delete it to start again"
        ) from error
    if theirs != run:
        old = path.replace(path.with_name(f"{path.name}.old"))
        why = _difference(theirs, run)
        warnings.warn(
            f"{path} is another run's checkpoint ({why}): kept as {old.name}, starting again",
            stacklevel=3,
        )
        return []
    with torch.no_grad():
        for name, p in learner.named_parameters():
            p.copy_(tensors[name])
            sgd.state[p]["momentum_buffer"] = tensors[f"momentum.{name}"].to(p.device)
    return history
