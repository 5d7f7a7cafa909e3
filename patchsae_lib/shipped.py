"""What ships because a notebook has no time to train it: an autoencoder, and prompts.

    python -m patchsae_lib sae
    python -m patchsae_lib prompts

The autoencoder is written to `data/sae.safetensors` with a card. Notebook 1 trains its own before
the reader's eyes and shows both; later notebooks take this one unless told otherwise. Prompts of
every task, of three seeds and two controls, go to `data/prompts/`; notebook 5 trains one of them.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import asdict, replace
from pathlib import Path

from patchsae_lib.activations import collect_tokens
from patchsae_lib.artefacts import ROOT, atomic_path
from patchsae_lib.checkpoints import save_sae
from patchsae_lib.clip import DATA, SplitCLIP, load_clip, templates_for
from patchsae_lib.evaluation import HeldOut, as_row, bootstrap_mean, evaluate_sae
from patchsae_lib.images import captions_of, labels_of
from patchsae_lib.notebooks import learnt_prompts
from patchsae_lib.profiles import Profile, load_profile
from patchsae_lib.sae import SAE
from patchsae_lib.training import train
from patchsae_lib.truth import baselines, compare_units, world_truth
from patchsae_lib.world import World

SHIPPED = DATA / "sae.safetensors"
PROMPTS = DATA / "prompts"

CARD = """# The autoencoder of the small CLIP

{d_sae:,} latents on the residual stream (width {d_vit}) after block {block} of the small CLIP,
float16. Made by

    python -m patchsae_lib sae

from {n_train:,} pictures of the embedded world: {steps:,} steps of {batch:,} tokens,
λ = {l1:g}, {minutes:.0f} minutes on two CPU cores; the rest as in the profile `world`.

## Held out ({n_test:,} single objects in all styles)

{report}

## Do single units find what is in a patch?

Mean intersection over union of the best unit of a concept, chosen on one half of the pictures and
scored on the other; 95 % bootstrap intervals over concepts.

{truth}
"""


def make(profile: Profile, out: Path, work: Path) -> None:
    """Train, measure, and write the autoencoder with its card."""
    clip = load_clip(profile.model)
    world = World("world", "train", profile.pictures.n_train)
    path = work / f"tokens-{len(world)}.safetensors"
    cache = collect_tokens(clip, world, range(len(world)), path)
    start = time.monotonic()
    sae, _ = train(cache, profile.sae, profile.train, work / "sae-checkpoint.safetensors")
    minutes = (time.monotonic() - start) / 60
    save_sae(out, sae, {"profile": asdict(profile)}, half=True)
    card(profile, clip, sae, out, minutes)


def card(profile: Profile, clip: SplitCLIP, sae: SAE, out: Path, minutes: float) -> None:
    """Measure on held-out pictures and write the card beside the weights."""
    test = World("styles", "test", profile.pictures.n_test)
    cache = collect_tokens(clip, test, range(len(test)))
    text = clip.text_features(test.class_names, templates_for(profile.model))
    captions = clip.text_features(captions_of(test), ("{}",))
    held_out = HeldOut(clip, cache, labels_of(test), text, captions)
    report = as_row(evaluate_sae(sae, held_out))
    z = cache.tokens[:, 1:].float()
    sets = {"latents": sae.encode, **baselines(z, sae.d_sae)}
    table = compare_units(
        sets, z, world_truth(test, range(len(test))), minimum=profile.min_patches
    )
    rows = [
        f"| {kind} | {units} | {mean:.3f} | {low:.3f} – {high:.3f} | {len(part)} |"
        for (kind, units), part in table.groupby(["kind", "units"], sort=False)
        for mean, low, high in [bootstrap_mean(part["iou"])]
    ]
    head = ["| kind | units | mean IoU | 95 % interval | concepts |", "|---|---|---|---|---|"]
    measures = [
        "| measure | value |",
        "|---|---|",
        *(f"| {k} | {v:.4f} |" for k, v in report.items()),
    ]
    text_of_card = CARD.format(
        d_sae=sae.d_sae,
        d_vit=sae.d_vit,
        block=clip.block + 1,
        n_train=profile.pictures.n_train,
        steps=profile.train.steps,
        batch=profile.train.batch_tokens,
        l1=profile.sae.l1,
        minutes=minutes,
        n_test=len(test),
        report="\n".join(measures),
        truth="\n".join([*head, *rows]),
    )
    with atomic_path(out.with_suffix(".md")) as path:
        path.write_text(text_of_card, encoding="utf-8")


def main(argv: list[str] | None = None) -> None:
    """The command line of `python -m patchsae_lib sae`."""
    parser = argparse.ArgumentParser(prog="python -m patchsae_lib sae", description=__doc__)
    parser.add_argument("--out", type=Path, default=SHIPPED)
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "sae")
    parser.add_argument("--pictures", type=int, default=12_000)
    parser.add_argument("--steps", type=int, default=3_000)
    given = parser.parse_args(argv)
    world = load_profile("world")
    profile = replace(
        world,
        pictures=replace(world.pictures, n_train=given.pictures),
        train=replace(world.train, steps=given.steps, checkpoint_every=250),
    )
    make(profile, given.out, given.work)


def prompts(argv: list[str] | None = None) -> None:
    """The command line of `python -m patchsae_lib prompts`: trains those that are not there."""
    parser = argparse.ArgumentParser(prog="python -m patchsae_lib prompts", description=__doc__)
    parser.add_argument("--out", type=Path, default=PROMPTS)
    given = parser.parse_args(argv)
    profile = load_profile("world")
    clip = load_clip(profile.model)
    seeds = range(profile.seeds)
    for seed, control in [(0, "swapped"), (0, "picture"), *((seed, "") for seed in seeds)]:
        for spec in profile.tasks:
            learnt_prompts(profile, [given.out], clip, spec, seed, control)
