"""The small CLIP's card, with accuracies measured anew: python -m recipes.card."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from patchsae_lib.artefacts import DATA, atomic_path, write_json
from patchsae_lib.clip import SplitCLIP
from patchsae_lib.interop.openclip import load_small_clip
from patchsae_lib.tokens import collect
from patchsae_lib.truth import bounds, compare_units, probe, random_directions, rank_scores
from patchsae_lib.world import CLASSES, TASKS, World
from patchsae_lib.world.truth import world_truth
from patchsae_lib.world.vocabulary import STYLES
from recipes.autoencoder import table
from recipes.lessons import LESSONS, POOLS
from recipes.small_clip import PretrainConfig, evaluate

N_PROBE, N_PROBED = 1400, 700  # pictures to fit the probe of patches to, and to test it on
N_SHOWN, N_DIRECTIONS = 1400, 3072  # pictures of patches that concepts are found in, directions
TEMPLATE = """# The small CLIP of the embedded world

open_clip's CLIP: a vision transformer of {layers} blocks and width {width} on 112×112 pictures in
patches of 8, a text transformer of {text_layers} blocks and width {text_width} over whole words;
{parameters:.1f} M parameters, float16 safetensors. Made by

    python -m recipes.small_clip{options}

**Data.** Pictures rendered from the seed: {rendered}.
Captions are drawn anew at each visit, and nothing but captions supervises: CLIP's loss of
picture and caption, and with weight {words:g} that of each word and the patch that fits it best
(Yao et al. 2022, FILIP).
**Training.** {done:,} steps of at most {batch} pictures ({seen:,} pictures seen),
{minutes:.0f} minutes on {device}; AdamW, learning rate {lr:g}, cosine; patches left out: at most
{drop_start:.0%}, falling to {drop_end:.0%}. A batch is a lesson, whose captions differ in one
respect (`recipes/lessons.py`):

{lessons}
{notes}
## Held-out accuracy (zero-shot, {n:,} pictures a row)

{table}

Intervals are 95 % (Wilson). The floor we set ourselves: photo .97; sketch, painting and
silhouette .95.

## What single patches carry

A linear probe for the class of a patch, on residual tokens after the second-last block
({probe_train:,} pictures to fit, {probe_test:,} to test): mean AUROC over classes **{auroc:.3f}**
(lowest: {worst} {worst_auroc:.3f}). The floor we set ourselves: .95. Of the variance of tokens on
objects, class explains **{class_share:.1%}** (exchanged classes: {class_share_floor:.1%}).

What a direction finds in patches, by kind of concept: mean IoU over concepts on {n_shown:,}
pictures of everything, chosen on one half and scored on the other. The probe is supervised, and
the ceiling of what a latent can do; of {n_directions:,} random directions each concept has its
best.

{patches}

## Curve

{curve}

Accuracies are on 140 pictures each.

## Known weaknesses

{weaknesses}
"""


def wilson(p: float, n: int, z: float = 1.96) -> tuple[float, float]:
    """Return Wilson's 95 % interval of a share p of n.

    >>> [round(v, 3) for v in wilson(0.5, 100)]
    [0.404, 0.596]
    """
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z * np.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return float(middle - half), float(middle + half)


def patch_probe(clip: SplitCLIP, n_train: int = N_PROBE, n_test: int = N_PROBED) -> Tensor:
    """Return the AUROC (classes,) of a linear probe for the class of a patch, on photos of single
    objects."""
    pairs = []
    for split, n in (("train", n_train), ("test", n_test)):
        world = World("objects", split, n)
        tokens = collect(clip, world)[:][:, 1:]
        truth = world_truth(world, range(n), [("class", cls) for cls in CLASSES])
        pairs.append((tokens.flatten(0, 1).float(), truth.flatten(0, 1)))
    (z, truth), (test_z, test_truth) = pairs
    (scores,) = probe(z, truth, test_z)
    return rank_scores(scores, test_truth)[1]


def patch_scores(clip: SplitCLIP, n: int = N_SHOWN) -> dict[str, dict[str, float]]:
    """Return, by kind of concept, the mean IoU over concepts (0 to 1) of a linear probe, which
    bounds what a direction can find in patches, of the best of many random directions, and of
    position alone: each chosen on one half of `n` pictures, scored on the other."""
    world = World("world", "test", n)
    z, truth = collect(clip, world)[:][:, 1:].float(), world_truth(world, range(n))
    random = {"random directions": random_directions(z, N_DIRECTIONS)}
    scores = pd.concat([bounds(z, truth), compare_units(random, z, truth)])
    means = scores.groupby(["kind", "units"], sort=False)["iou"].mean()
    kinds, units = scores["kind"].unique(), scores["units"].unique()
    return {kind: {name: float(means[kind, name]) for name in units} for kind in kinds}


def class_share(clip: SplitCLIP, n: int = N_SHOWN, seed: int | None = None) -> float:
    """Return the share (0 to 1) of the variance of tokens on objects that their class explains;
    with a `seed`, of classes that have changed pictures: a floor."""
    world = World("styles", "test", n)
    truth = world_truth(world, range(n), [("class", cls) for cls in CLASSES])
    if seed is not None:  # a picture keeps its patches, and gets the classes of another
        order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
        label = torch.tensor([world.label(i) for i in range(n)])[order][:, None]
        truth = truth.any(-1, keepdim=True) & (label == torch.arange(len(CLASSES)))[:, None]
    inside = truth.sum(-1) == 1
    z, cls = collect(clip, world)[:][:, 1:].float()[inside], truth[inside].float().argmax(-1)
    mean, sizes = z.mean(0), torch.bincount(cls, minlength=len(CLASSES)).clamp_min(1)
    means = z.new_zeros(len(CLASSES), z.shape[1]).index_add_(0, cls, z) / sizes[:, None]
    return float(((means[cls] - mean) ** 2).sum() / ((z - mean) ** 2).sum())


def measure(clip: SplitCLIP, n: int) -> dict:
    """Measure what the card reports: accuracies on `n` pictures each, and what patches carry."""
    with torch.no_grad():
        scores = evaluate(clip, n, tuple(t for t in TASKS if t not in ("world", "objects")))
        auroc, patches = patch_probe(clip), patch_scores(clip)
        shares = class_share(clip), class_share(clip, seed=0)
    worst = int(auroc.nan_to_num(1.0).argmin())
    return {
        "n": n,
        "accuracy": scores,
        "patch_auroc": float(auroc.nanmean()),
        "patches": patches,
        "class_share": shares[0],
        "class_share_floor": shares[1],
        "worst_class": CLASSES[worst],
        "worst_auroc": float(auroc[worst]),
    }


def lesson_table() -> str:
    """Return the lessons and their shares of the batches as a table in markdown."""
    rows = [
        (lesson.draw.__name__, f"{lesson.early:.0%}", f"{lesson.middle:.0%} → {lesson.late:.0%}")
        for lesson in LESSONS
    ]
    return table(["lesson", "first half", "second half"], rows)


def patch_table(scores: dict[str, dict[str, float]]) -> str:
    """Return what directions find in patches as a table in markdown."""
    units = list(next(iter(scores.values())))
    rows = [(kind, *(f"{of_kind[u]:.3f}" for u in units)) for kind, of_kind in scores.items()]
    return table(["kind", *units], rows)


def write_card(directory: Path, measured: dict) -> None:
    """Write `README.md` beside the weights, from `training.json` and what was measured."""
    training = json.loads((directory / "training.json").read_text("utf-8"))
    config = json.loads((directory / "open_clip_config.json").read_text("utf-8"))["model_cfg"]
    n, scores = measured["n"], measured["accuracy"]
    lines = ["| | classes | shift | accuracy | 95 % interval |", "|---|---|---|---|---|"]
    for name, value in scores.items():
        task = TASKS["objects" if name in STYLES else name]
        title = f"objects, {name}" if name in STYLES else task.title.lower()
        shift = "none" if name in STYLES else task.shift
        low, high = wilson(value, n)
        lines.append(
            f"| {title} | {len(task.classes)} | {shift} | {value:.3f} | {low:.3f} – {high:.3f} |"
        )
    rows = [r for r in training["curve"] if "photo" in r]
    measured_then = [name for name in rows[0] if name not in ("step", "loss")]
    curve = table(
        ["step", "loss", *measured_then],
        [
            (row["step"], f"{row['loss']:.3f}", *(f"{row[name]:.2f}" for name in measured_then))
            for row in rows[:: -max(1, len(rows) // 12)][::-1]
        ],
    )
    weak = [
        f"- {TASKS[k].title}: {v:.2f} zero-shot."
        for k, v in sorted(scores.items(), key=lambda kv: kv[1])
        if k in TASKS and v < 0.7
    ]
    weak.append("- It knows the words of its vocabulary and no others.")
    about = training["config"]
    default = asdict(PretrainConfig())
    options = [f" --{k.replace('_', '-')} {v}" for k, v in about.items() if v != default[k]]
    if "init" in training:
        options.append(" --init DIRECTORY")
    text = TEMPLATE.format(
        **about,
        options="".join(options),
        layers=config["vision_cfg"]["layers"],
        width=config["vision_cfg"]["width"],
        text_layers=config["text_cfg"]["layers"],
        text_width=config["text_cfg"]["width"],
        parameters=training.get("parameters", 0) / 1e6,
        done=training["step"],
        seen=training["pictures"],
        rendered=", ".join(f"{round(n * about['pools']):,} {pool}" for pool, n in POOLS.items()),
        lessons=lesson_table(),
        class_share=measured["class_share"],
        class_share_floor=measured["class_share_floor"],
        patches=patch_table(measured["patches"]),
        n_shown=N_SHOWN,
        n_directions=N_DIRECTIONS,
        minutes=training["seconds"] / 60,
        device=training.get("device", "two CPU cores"),
        n=n,
        table="\n".join(lines),
        probe_train=N_PROBE,
        probe_test=N_PROBED,
        auroc=measured["patch_auroc"],
        worst=measured["worst_class"],
        worst_auroc=measured["worst_auroc"],
        curve=curve,
        weaknesses="\n".join(weak),
        notes="".join(f"\n{note}\n" for note in training.get("notes", [])),
    )
    with atomic_path(directory / "README.md") as path:
        path.write_text(text, encoding="utf-8")


def main(argv: list[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m recipes.card", description=__doc__)
    parser.add_argument("--directory", type=Path, default=DATA / "small_clip")
    parser.add_argument("--n", type=int, default=1400, help="pictures a row")
    given = parser.parse_args(argv)
    measured = measure(load_small_clip(given.directory), given.n)
    write_json(given.directory / "measured.json", measured)
    write_card(given.directory, measured)


if __name__ == "__main__":
    main()
