"""The small CLIP, trained from captions alone: python -m recipes.small_clip.

Contrastive training on pictures of the embedded world, in lessons (`recipes.lessons`). Beside
CLIP's own loss, each word of a caption is compared with the patch that fits it best, so that
patches say what they show and not only what the picture is of.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import open_clip
import torch
import torch.nn.functional as F
from open_clip.transformer import PatchDropout
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.data import DataLoader
from tqdm import tqdm

from patchsae_lib.artefacts import DATA, resume, save_checkpoint, weights_hash, write_json
from patchsae_lib.clip import SplitCLIP, accuracy
from patchsae_lib.distributed import best_device
from patchsae_lib.interop.openclip import (
    WordTokenizer,
    create_small_clip,
    load_small_clip,
    save_small_clip,
    small_clip_config,
)
from patchsae_lib.world import TASKS, World, all_words
from patchsae_lib.world.scene import Scene
from patchsae_lib.world.vocabulary import NUMBERS, STYLES
from recipes.lessons import LESSONS, POOLS, Pool, render_pool, singles_of

#: words that no patch shows
SILENT = {
    "a", "of", "and", "with", "the", "word", "thing", "things", "in", "on", "at", "by", "left",
    "right", "bottom", *NUMBERS,
}  # fmt: skip


@dataclass(frozen=True)
class PretrainConfig:
    """How the small CLIP is trained.

    The share of patches left out moves linearly from `drop_start` to `drop_end`: most of the
    learning is as good with few patches and much cheaper (Li et al. 2023, FLIP), the last of it
    is not, and a lesson may need more of them. `words`: the weight of the loss of words and
    patches. `pools`: the share of the pictures of `recipes.lessons.POOLS` to render. `begin`: the
    part of the curriculum that weights to start from have behind them.
    """

    steps: int = 24_000
    batch: int = 256
    lr: float = 1e-3
    warmup: int = 500
    weight_decay: float = 0.1
    words: float = 0.5
    drop_start: float = 0.7
    drop_end: float = 0.5
    pools: float = 1.0
    seed: int = 0
    begin: float = 0.0

    def part(self, step: int) -> float:
        """Return the part (0..1) of the curriculum that lies behind the weights at a step."""
        return self.begin + (1 - self.begin) * step / self.steps

    def at(self, step: int) -> tuple[float, float]:
        """Return patch dropout and learning rate at a step."""
        t = step / self.steps
        drop = self.drop_start + self.part(step) * (self.drop_end - self.drop_start)
        cosine = 0.5 * (1 + np.cos(np.pi * t))
        return drop, self.lr * min(1.0, (step + 1) / self.warmup) * cosine


def contrastive_loss(image: Tensor, text: Tensor, scale: Tensor, ids: Tensor) -> Tensor:
    """CLIP's symmetric cross-entropy, in which all pictures with the same caption are right."""
    return symmetric_loss(scale * image @ text.T, ids)


def symmetric_loss(logits: Tensor, ids: Tensor) -> Tensor:
    """Return the cross-entropy of rows and of columns (b, b); all pairs of equal ids are right."""
    same = (ids[:, None] == ids[None]).all(-1).float()
    target = same / same.sum(1, keepdim=True)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def words_loss(
    patches: Tensor, words: Tensor, owner: Tensor, scale: Tensor, ids: Tensor
) -> Tensor:
    """Contrast captions with pictures by their words' best patches (Yao et al. 2022, FILIP).

    `patches` (b, p, d) and `words` (w, d) are unit vectors, `owner` (w,) tells whose word each
    is. A caption fits a picture as well as, on average, its words fit their best patches there;
    captions without such words are left out.
    """
    fits = words @ patches.flatten(0, 1).T
    best = fits.view(len(words), *patches.shape[:2]).amax(-1)  # (w, b)
    of_caption = F.one_hot(owner, len(patches)).T.to(best.dtype)
    spoken = of_caption.any(1).nonzero()[:, 0]
    of_caption = of_caption[spoken] / of_caption[spoken].sum(1, keepdim=True)
    return symmetric_loss(scale * (of_caption @ best)[:, spoken].T, ids[spoken])


def draw_batch(
    pools: dict[str, Pool], step: int, config: PretrainConfig
) -> tuple[Tensor, list[str], float]:
    """Draw the pictures (batch, 3, 112, 112) uint8 and captions of a step, from its number.

    With them comes the share of patches that its lesson allows to leave out.
    """
    rng = random.Random(f"{config.seed}/batch/{step}")
    t = config.part(step)
    lesson = rng.choices(LESSONS, [lesson.share(t) for lesson in LESSONS])[0]
    n = max(2, round(config.batch * lesson.part))
    drawn = list(lesson.draw(rng, pools, config.seed, t, n))
    pictures = np.stack([pools[pool].pictures[index] for pool, index, _ in drawn])
    captions = [text for _, _, text in drawn]
    return torch.from_numpy(pictures).permute(0, 3, 1, 2), captions, lesson.dropped


class Batches:
    """The batches of a training by the number of their step, each with its captions' ids."""

    def __init__(
        self, pools: dict[str, Pool], config: PretrainConfig, tokenizer: WordTokenizer
    ) -> None:
        self.pools, self.config, self.tokenizer = pools, config, tokenizer

    def __getitem__(self, step: int) -> tuple[Tensor, Tensor, float]:
        pictures, captions, dropped = draw_batch(self.pools, step, self.config)
        return pictures, self.tokenizer(captions), dropped

    def ahead(self, first: int, device: torch.device) -> Iterator[tuple[Tensor, Tensor, float]]:
        """Yield the batches from a step on; beside a GPU other processes draw them ahead."""
        on_gpu = device.type == "cuda"
        if on_gpu:  # once, before there are processes
            for style in STYLES:
                singles_of(style, len(self.pools["singles"].pictures), self.config.seed)
        n = min(12, max(1, (os.cpu_count() or 1) - 2)) if on_gpu else 0
        yield from DataLoader(
            self,  # type: ignore[arg-type]  # all that a Dataset needs is __getitem__
            batch_size=None,
            sampler=range(first, self.config.steps),
            collate_fn=tuple,
            num_workers=n,
            multiprocessing_context="fork" if n else None,
            pin_memory=on_gpu,
            generator=torch.Generator(),
        )


def groups_of(model: nn.Module, config: PretrainConfig) -> list[dict]:
    """Return the optimizer's parameter groups: matrices decay, gains and biases do not."""
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim <= 1]
    return [
        {"params": matrices, "weight_decay": config.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]


def evaluate(clip: SplitCLIP, n: int, tasks: tuple[str, ...] = tuple(TASKS)) -> dict[str, float]:
    """Return the zero-shot accuracy on `n` held-out pictures of objects in each style (35-way),
    and of each task."""
    return {name: zero_shot(clip, held_out(name, n)) for name in (*STYLES, *tasks)}


class StyleWorld(World):
    """The `objects` task drawn in a style of the pretraining, and prompted with its name."""

    def __init__(self, style: str, n: int) -> None:
        super().__init__("objects", "test", n)
        self.style = style
        self.task = replace(self.task, templates=(f"a {style} of a {{}}",))

    def scene(self, index: int) -> Scene:
        """Return the scene of `objects` at an index, in this style."""
        return replace(super().scene(index), style=self.style)


@torch.no_grad()
def predict(clip: SplitCLIP, pictures: Tensor, text_features: Tensor, batch: int = 64) -> Tensor:
    """Compute logits (n, c), on the CPU, of uint8 pictures (n, 3, h, w)."""
    z = (clip.tokens(clip.preprocess(part)) for part in pictures.split(batch))
    return torch.cat([clip.classify(part, text_features).cpu() for part in z])


def zero_shot(clip: SplitCLIP, world: World) -> float:
    """Return the zero-shot accuracy, 0 to 1."""
    text = clip.text_features(world.class_names, world.task.templates)
    labels = torch.tensor([world.label(i) for i in range(len(world))])
    return accuracy(predict(clip, world.batch(range(len(world))), text), labels)


@lru_cache(maxsize=8)  # a world keeps its pixels: the curve measures the same again and again
def held_out(name: str, n: int) -> World:
    """Return `n` held-out pictures of objects in a style, or of a task."""
    return StyleWorld(name, n) if name in STYLES else World(name, "test", n)


class Pretraining:
    """The small CLIP in training: weights, AdamW's moments, and the curve so far.

    `run` is all that the result depends on, `about` what `training.json` tells of the training.
    """

    def __init__(self, config: PretrainConfig, init: Path | None = None) -> None:
        self.config, self.device = config, best_device()
        torch.manual_seed(config.seed)
        self.words = all_words()
        self.architecture = small_clip_config(self.words)
        self.model = create_small_clip(self.architecture).to(self.device)
        self.tokenizer = WordTokenizer(self.words)
        if init is None and config.begin:
            raise ValueError(f"begin = {config.begin} needs weights that have learnt so far: init")
        if init is not None:
            clip = load_small_clip(init)
            start_from(self.model, self.tokenizer, clip)
        named = [i for w in self.words if w not in SILENT for i in self.tokenizer([w])[0, 1:2]]
        self.named = torch.zeros(self.tokenizer.vocab_size, dtype=torch.bool, device=self.device)
        self.named[named] = True
        self.optimizer = torch.optim.AdamW(
            groups_of(self.model, config), lr=config.lr, betas=(0.9, 0.98), fused=True
        )
        self.run = {"config": asdict(config), "start": weights_hash(self.model)}
        parameters = sum(p.numel() for p in self.model.parameters())
        self.about: dict = {"config": asdict(config), "step": 0, "pictures": 0, "curve": []}
        self.about |= {
            "seconds": 0.0,
            "parameters": parameters,
            "device": device_name(self.device),
        }
        if init is not None:
            self.about["init"] = weights_hash(clip.model)

    def save(self, path: Path) -> None:
        """Write all that the training needs to go on."""
        moments = self.optimizer.state_dict()["state"]
        tensors = {f"model.{name}": x for name, x in self.model.state_dict().items()}
        tensors |= {
            f"optimizer.{i}.{name}": x for i, state in moments.items() for name, x in state.items()
        }
        save_checkpoint(path, self.run, tensors, about=self.about)

    def resume(self, path: Path) -> None:
        """Go on from a checkpoint of the same run, if there is one; another run's is set aside."""
        kept = resume(path, self.run)
        if kept is None:
            return
        tensors, state = kept
        weights = {name: tensors[f"model.{name}"] for name in self.model.state_dict()}
        moments: dict[int, dict[str, Tensor]] = {}
        for key, value in tensors.items():
            if key.startswith("optimizer."):
                _, i, name = key.split(".", 2)
                moments.setdefault(int(i), {})[name] = value
        self.model.load_state_dict(weights)
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": moments})
        self.about = state["about"]

    def step(self, pictures: Tensor, ids: Tensor, dropped: float = 1.0) -> Tensor:
        """Take a step on pictures (batch, 3, 112, 112) uint8 and the ids of their captions, where
        at most the share `dropped` of the patches is left out; return its loss, on the device."""
        step, model = self.about["step"], self.model
        drop, lr = self.config.at(step)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        torch.manual_seed(self.config.seed * 1_000_003 + step)  # for the patches left out
        model.visual.patch_dropout = PatchDropout(min(drop, dropped))
        ids = ids.to(self.device, non_blocking=True)
        x = (pictures.to(self.device, non_blocking=True).float() - 127.5) / 127.5
        # The CPU's fused bf16 attention has a slow backward: plain matrix products are faster.
        backends = [SDPBackend.MATH]
        if self.device.type == "cuda":
            backends.insert(0, SDPBackend.FLASH_ATTENTION)
        with torch.autocast(self.device.type, torch.bfloat16), sdpa_kernel(backends):
            loss = self.loss(x, ids)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        self.optimizer.step()
        with torch.no_grad():
            model.logit_scale.clamp_(0, np.log(100))
        model.visual.patch_dropout = nn.Identity()
        self.about["step"] = step + 1
        self.about["pictures"] += len(pictures)
        return loss.detach()

    def loss(self, x: Tensor, ids: Tensor) -> Tensor:
        """Return CLIP's loss and, by its weight, that of words and patches."""
        visual, model, kept = self.model.visual, self.model, []
        hook = model.ln_final.register_forward_hook(lambda *call: kept.append(call[-1]))
        visual.output_tokens = True
        image, tokens = visual(x)
        text = F.normalize(model.encode_text(ids).float(), dim=-1)
        visual.output_tokens = False
        hook.remove()
        scale = model.logit_scale.exp()
        loss = contrastive_loss(F.normalize(image.float(), dim=-1), text, scale, ids)
        if not self.config.words:
            return loss
        named = self.named[ids]
        words = F.normalize((kept[0][named] @ model.text_projection).float(), dim=-1)
        patches = F.normalize((tokens @ visual.proj).float(), dim=-1)
        owner = named.nonzero()[:, 0]
        return loss + self.config.words * words_loss(patches, words, owner, scale, ids)

    def accuracy(self, n: int) -> dict[str, float]:
        """Return zero-shot accuracies so far, on `n` held-out pictures each."""
        with torch.no_grad():
            clip = SplitCLIP(self.model.eval(), self.tokenizer)
            scores = evaluate(clip, n, ("words", "counting", "textures"))
        self.model.train()
        return {style: round(score, 3) for style, score in scores.items()}

    def export(self, directory: Path) -> None:
        """Write the model as the library reads it."""
        save_small_clip(directory, self.model, self.architecture, self.words)
        write_json(directory / "training.json", self.about)


def start_from(model: open_clip.CLIP, tokenizer: WordTokenizer, clip: SplitCLIP) -> None:
    """Take the weights of a small CLIP over another vocabulary; words it lacks stay random."""
    weights, old = clip.model.state_dict(), clip.tokenizer
    assert isinstance(old, WordTokenizer)
    words = model.token_embedding.weight.detach().clone()
    rows = {new: old.ids[word] for word, new in tokenizer.ids.items() if word in old.ids}
    rows |= {0: 0, tokenizer.start: old.start, tokenizer.end: old.end}
    words[list(rows)] = weights["token_embedding.weight"][list(rows.values())]
    model.load_state_dict({**weights, "token_embedding.weight": words})


def device_name(device: torch.device) -> str:
    """Return what the card calls a device."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{torch.get_num_threads()} CPU cores"


def pretrain(
    config: PretrainConfig,
    out: Path,
    work: Path,
    fresh: bool = False,
    init: Path | None = None,
    interval: int = 250,
) -> Path:
    """Train the small CLIP and write it to `out`, which is returned.

    Pools and checkpoints are in `work`; an interrupted training with the same configuration goes
    on, unless it shall start `fresh`. A checkpoint is written every `interval` steps, and at every
    second one accuracy is measured.
    """
    training, checkpoint = Pretraining(config, init), work / "checkpoint.safetensors"
    if not fresh:
        training.resume(checkpoint)
    sizes = {pool: round(n * config.pools) for pool, n in POOLS.items()}
    pools = {pool: render_pool(pool, n, config.seed, work) for pool, n in sizes.items()}
    about = training.about
    first, start, seconds = about["step"], time.monotonic(), about["seconds"]
    losses: list[Tensor] = []
    batches = Batches(pools, config, training.tokenizer).ahead(first, training.device)
    bar = tqdm(batches, "pretraining", config.steps, initial=first)
    for done, batch in enumerate(bar, first + 1):
        losses.append(training.step(*batch))
        if done % 50 == 0:  # to read a loss is to wait for a GPU
            bar.set_postfix(loss=f"{torch.stack(losses[-50:]).mean():.3f}", refresh=False)
        if done % interval == 0 or done == config.steps:
            row = {"step": done, "loss": round(float(torch.stack(losses).mean()), 4)}
            losses = []
            if done % (2 * interval) == 0 or done == config.steps:
                row |= training.accuracy(140)
            about["curve"].append(row)
            about["seconds"] = seconds + time.monotonic() - start
            training.save(checkpoint)
            tqdm.write(json.dumps(row))
    training.export(out)
    return out


def main(argv: list[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m recipes.small_clip", description=__doc__)
    parser.add_argument("--out", type=Path, default=DATA / "small_clip")
    parser.add_argument("--work", type=Path, default=Path("runs/pretrain"))
    parser.add_argument("--init", type=Path, help="the folder of a small CLIP to start from")
    parser.add_argument("--fresh", action="store_true", help="start again, even if resumable")
    default = PretrainConfig()
    for name, value in asdict(default).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(value), default=value)
    given = vars(parser.parse_args(argv))
    paths = {k: given.pop(k) for k in ("out", "work", "fresh", "init")}
    pretrain(PretrainConfig(**given), **paths)


if __name__ == "__main__":
    main()
