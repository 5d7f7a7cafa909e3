"""The small CLIP, trained from captions alone: python -m recipes.small_clip.

Contrastive training on pictures of the embedded world. Two pools are rendered once: single large
objects, from which classes are learnt, and scenes of several objects that are all named, which
move what is learnt from CLS into the patches. Captions are drawn anew at each visit.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import cache, partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from open_clip.transformer import PatchDropout
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from tqdm import tqdm

from patchsae_lib.artefacts import (
    DATA,
    atomic_path,
    resume,
    save_checkpoint,
    weights_hash,
    write_json,
)
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
from patchsae_lib.world.render import render
from patchsae_lib.world.scene import Mix, Scene, caption, sample
from patchsae_lib.world.vocabulary import STYLES


@dataclass(frozen=True)
class PretrainConfig:
    """How the small CLIP is trained. Every batch is one of three lessons.

    - classes: single objects in one style; captions seldom name a colour or a background, so that
      little but the class tells them apart. (Colours are learnt first, and then hide the class.)
    - words: pictures in one style with a word on them; captions name nothing but the word.
    - everything: scenes and single objects in all styles, under whole captions.

    The share of patches left out moves linearly from `drop_start` to `drop_end`: most of the
    learning is as good with few patches and much cheaper (Li et al. 2023, FLIP), the last of it,
    and reading, is not. `init`: a folder whose weights to start from instead of random ones.
    """

    singles: int = 60_000
    scenes: int = 30_000
    steps: int = 6_000
    batch: int = 128
    lr: float = 1e-3
    warmup: int = 200
    weight_decay: float = 0.1
    share_classes: float = 0.4
    share_words: float = 0.15
    share_scenes: float = 0.5  # of the pictures in a lesson of everything
    drop_start: float = 0.7
    drop_end: float = 0.3
    seed: int = 0
    init: str = ""

    def at(self, step: int) -> tuple[float, float]:
        """Return patch dropout and learning rate at a step."""
        t = step / self.steps
        drop = self.drop_start + t * (self.drop_end - self.drop_start)
        cosine = 0.5 * (1 + np.cos(np.pi * t))
        return drop, self.lr * min(1.0, (step + 1) / self.warmup) * cosine


POOLS = {
    "singles": Mix(assorted=0.05, counted=0.05, word=0.25, mention_colour=0.5,
                   mention_background=0.25),
    "scenes": Mix(assorted=0.7, counted=0.2, word=0.2),
}  # fmt: skip
CLASSES_ONLY = replace(
    POOLS["singles"], mention_colour=0.1, mention_texture=0.15, mention_background=0.05,
    mention_word=0.2, styles=(0.35, 0.2, 0.3, 0.15),  # more of what has most to be told apart
)  # fmt: skip


def pool_scene(pool: str, index: int, seed: int) -> Scene:
    """Return the scene of a picture of a pool, which is always the same."""
    rng = random.Random(f"{seed}/{pool}/{index}")
    return sample(rng, POOLS[pool])


def pool_caption(pool: str, index: int, seed: int, visit: int, mix: Mix | None = None) -> str:
    """Return the caption of a picture of a pool, in other words at each visit."""
    rng = random.Random(f"{seed}/{pool}/{index}/{visit}")
    return caption(pool_scene(pool, index, seed), rng, mix or POOLS[pool])


@cache
def singles_of(style: str, worded: bool, n: int, seed: int) -> list[int]:
    """List the pictures of single objects in a style; `worded`: only those with a word."""
    scenes = ((i, pool_scene("singles", i, seed)) for i in range(n))
    return [i for i, s in scenes if s.style == style and (s.word or not worded)]


def _render_stretch(pool: str, seed: int, start: int, stop: int) -> tuple[int, np.ndarray]:
    pictures = [render(pool_scene(pool, i, seed)).pixels for i in range(start, stop)]
    return start, np.stack(pictures)


def render_pool(pool: str, n: int, config: PretrainConfig, folder: Path) -> np.ndarray:
    """Return a pool (n, 112, 112, 3) uint8, rendered once into a memory-mapped file."""
    path = folder / f"{pool}-{config.seed}-{n}.npy"
    if not path.exists():
        with atomic_path(path) as temporary, ProcessPoolExecutor() as workers:
            shape = (n, 112, 112, 3)
            out = np.lib.format.open_memmap(temporary, "w+", np.uint8, shape)
            starts = range(0, n, 500)
            stops = [min(n, s + 500) for s in starts]
            work = workers.map(partial(_render_stretch, pool, config.seed), starts, stops)
            for start, pictures in tqdm(work, total=len(starts), desc=f"rendering {pool}"):
                out[start : start + len(pictures)] = pictures
            out.flush()
    return np.load(path, mmap_mode="r")


def contrastive_loss(image: Tensor, text: Tensor, scale: Tensor, ids: Tensor) -> Tensor:
    """CLIP's symmetric cross-entropy, in which all pictures with the same caption are right."""
    logits = scale * image @ text.T
    same = (ids[:, None] == ids[None]).all(-1).float()
    target = same / same.sum(1, keepdim=True)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def draw_batch(
    pools: dict[str, np.ndarray], step: int, config: PretrainConfig
) -> tuple[Tensor, list[str]]:
    """Draw the pictures (batch, 3, 112, 112) uint8 and captions of a step, from its number."""
    rng = random.Random(f"{config.seed}/batch/{step}")
    lesson, style = rng.random(), rng.choices(STYLES, CLASSES_ONLY.styles)[0]
    words = lesson < config.share_words
    classes = not words and lesson < config.share_words + config.share_classes
    one_style = words or classes
    singles = singles_of(style, words, config.singles, config.seed) if one_style else []
    pictures, captions = [], []
    for _ in range(config.batch):
        scenes = not singles and rng.random() < config.share_scenes
        pool = "scenes" if scenes else "singles"
        n = len(singles or pools[pool])
        index = singles[rng.randrange(n)] if singles else rng.randrange(n)
        pictures.append(pools[pool][index])
        visit = rng.getrandbits(32)
        if words:
            word = pool_scene(pool, index, config.seed).word
            captions.append(f"a {style} of a thing with the word {word}")
        else:
            mix = CLASSES_ONLY if classes else None
            captions.append(pool_caption(pool, index, config.seed, visit, mix))
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2), captions


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
    out = {style: zero_shot(clip, StyleWorld(style, n)) for style in STYLES}
    return out | {name: zero_shot(clip, World(name, "test", n)) for name in tasks}


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
    right = []
    for start in range(0, len(world), 100):
        rows = range(start, min(start + 100, len(world)))
        logits = predict(clip, world.batch(rows), text).cpu()
        right.append(accuracy(logits, labels[start : rows.stop]) * len(rows))
    return sum(right) / len(world)


class Pretraining:
    """The small CLIP in training: weights, AdamW's moments, and the curve so far.

    `run` is all that the result depends on, `about` what `training.json` tells of the training.
    """

    def __init__(self, config: PretrainConfig) -> None:
        self.config, self.device = config, best_device()
        torch.manual_seed(config.seed)
        self.words = all_words()
        self.architecture = small_clip_config(self.words)
        self.model = create_small_clip(self.architecture).to(self.device)
        if config.init:
            weights = load_small_clip(Path(config.init)).model.state_dict()
            self.model.load_state_dict({k: v.float() for k, v in weights.items()})
        self.tokenizer = WordTokenizer(self.words)
        self.optimizer = torch.optim.AdamW(
            groups_of(self.model, config), lr=config.lr, betas=(0.9, 0.98), fused=True
        )
        self.run = {"config": asdict(config), "start": weights_hash(self.model)}
        parameters = sum(p.numel() for p in self.model.parameters())
        self.about: dict = {"config": asdict(config), "step": 0, "curve": [], "seconds": 0.0}
        self.about |= {"parameters": parameters, "device": device_name(self.device)}

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

    def step(self, pictures: Tensor, captions: list[str]) -> float:
        """Take a step on pictures (batch, 3, 112, 112) uint8 and captions; return its loss."""
        step, model = self.about["step"], self.model
        drop, lr = self.config.at(step)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        torch.manual_seed(self.config.seed * 1_000_003 + step)  # for the patches left out
        model.visual.patch_dropout = PatchDropout(drop)
        ids = self.tokenizer(captions).to(self.device)
        x = (pictures.to(self.device).float() - 127.5) / 127.5
        # The CPU's fused bf16 attention has a slow backward: plain matrix products are faster.
        backends = [SDPBackend.MATH]
        if self.device.type == "cuda":
            backends.insert(0, SDPBackend.FLASH_ATTENTION)
        with torch.autocast(self.device.type, torch.bfloat16), sdpa_kernel(backends):
            image = model.encode_image(x, normalize=True)
            text = model.encode_text(ids, normalize=True)
        loss = contrastive_loss(image.float(), text.float(), model.logit_scale.exp(), ids)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        self.optimizer.step()
        with torch.no_grad():
            model.logit_scale.clamp_(0, np.log(100))
        model.visual.patch_dropout = nn.Identity()
        self.about["step"] = step + 1
        return float(loss.detach())

    def accuracy(self, n: int) -> dict[str, float]:
        """Return the zero-shot accuracy in each style so far, on `n` held-out pictures."""
        with torch.no_grad():
            scores = evaluate(SplitCLIP(self.model.eval(), self.tokenizer), n, ())
        self.model.train()
        return {style: round(score, 3) for style, score in scores.items()}

    def export(self, directory: Path) -> None:
        """Write the model as the library reads it."""
        save_small_clip(directory, self.model, self.architecture, self.words)
        write_json(directory / "training.json", self.about)


def device_name(device: torch.device) -> str:
    """Return what the card calls a device."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{torch.get_num_threads()} CPU cores"


def pretrain(
    config: PretrainConfig, out: Path, work: Path, fresh: bool = False, interval: int = 250
) -> Path:
    """Train the small CLIP and write it to `out`, which is returned.

    Pools and checkpoints are in `work`; an interrupted training with the same configuration goes
    on, unless it shall start `fresh`. A checkpoint is written every `interval` steps, and at every
    second one accuracy is measured.
    """
    training, checkpoint = Pretraining(config), work / "checkpoint.safetensors"
    if not fresh:
        training.resume(checkpoint)
    pools = {pool: render_pool(pool, getattr(config, pool), config, work) for pool in POOLS}
    about = training.about
    first, start, seconds = about["step"], time.monotonic(), about["seconds"]
    losses: list[float] = []
    bar = tqdm(range(first, config.steps), "pretraining", config.steps, initial=first)
    for step in bar:
        losses.append(training.step(*draw_batch(pools, step, config)))
        bar.set_postfix(loss=f"{np.mean(losses[-50:]):.3f}", refresh=False)
        done = step + 1
        if done % interval == 0 or done == config.steps:
            row = {"step": done, "loss": round(float(np.mean(losses)), 4)}
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
    parser.add_argument("--fresh", action="store_true", help="start again, even if resumable")
    default = PretrainConfig()
    for name, value in asdict(default).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(value), default=value)
    given = vars(parser.parse_args(argv))
    paths = {k: given.pop(k) for k in ("out", "work", "fresh")}
    pretrain(PretrainConfig(**given), **paths)


if __name__ == "__main__":
    main()
