"""The autoencoders that ship in `data/`, and their card: python -m recipes.autoencoder.

Notebook 1 trains an autoencoder before the reader's eyes, but has no time to train one as long as
`sae.safetensors`; later notebooks use this one unless they are told otherwise. In `saes/` are
those that it is compared with, trained as long: of other seeds, and of other blocks of CLIP.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import torch

from patchsae_lib import artefacts
from patchsae_lib.artefacts import DATA, atomic_path, weights_hash
from patchsae_lib.evaluation import evaluate_sae
from patchsae_lib.interop import load_sae, save_sae
from patchsae_lib.latents import partners
from patchsae_lib.names import activity, name_latents
from patchsae_lib.profiles import load_profile
from patchsae_lib.sae import SAE
from patchsae_lib.study import Study, shipped_identity
from patchsae_lib.training import train
from patchsae_lib.truth import baselines, compare_units, mean_scores
from recipes.small_clip import device_name

N_SHOWN = 1000  # pictures of everything, for what is silent
#: what is trained, by name: the change of block (the last but one is the subject's), and the seed
TRAINED = {
    "sae": (0, 0), "seed-1": (0, 1), "seed-2": (0, 2),
    "block-2": (-3, 0), "block-3": (-2, 0), "block-4": (-1, 0),
}  # fmt: skip
CARD = """# The autoencoder of the small CLIP

{d_sae:,} latents on the residual stream (width {d_vit}) after block {block} of the small CLIP,
float16. Made by

    python -m recipes.autoencoder

from {n_train:,} pictures of the embedded world: {steps:,} steps of {batch:,} tokens,
λ = {l1:g}, learning rate {lr:g}, on {device}; the rest as in the profile
`world`. Trained equally long, in `saes/`: two other seeds, and blocks 2 to 4. In
`sae_partners.parquet`: the cosine of each latent with its partner in the second seed, and the
partner's name.

## Held out ({n_test:,} single objects in all styles)

{measures}

`dead` above is the share of latents that are silent on these pictures, which show no scenes and
no words. On {n_shown:,} pictures of everything **{silent:.1%}** are silent, and **{often:.1%}**
are above τ = {tau:g} in more than half of the pictures.

## Do single units find what is in a patch?

Mean intersection over union of the best unit of a concept, chosen on one half of the pictures and
scored on the other; 95 % intervals over concepts, which end at 0 and 1.

{truth}
"""


def make(study: Study, out: Path) -> None:
    """Train the autoencoders of a study, and write the first to `out` with its identity, its card,
    and the partners of its latents in the second; the rest to the folder `saes` beside it."""
    sae = trained(study, "sae")
    identity = ship(out, study, sae)
    with atomic_path(out.with_suffix(".md")) as path:
        path.write_text(card(study, sae), encoding="utf-8")
    companions = {name: trained(study, name) for name in TRAINED if name != "sae"}
    for name, companion in companions.items():
        ship(out.parent / "saes" / f"{name}.safetensors", at(study, name), companion)
    shipped = load_sae(out)
    identity["sae"] = weights_hash(shipped)
    table = partner_table(study, shipped, companions["seed-1"])
    artefacts.save(out.with_name("sae_partners.parquet"), table, identity)


def ship(path: Path, study: Study, sae: SAE) -> dict[str, Any]:
    """Write an autoencoder of a study in float16; return its identity, which is beside it."""
    about = {"profile": asdict(study.profile)}
    writer = SimpleNamespace(save=lambda path: save_sae(path, sae, about, half=True))
    identity = shipped_identity(study.profile, study.clip_hash, study.clip)
    artefacts.save(path, writer, identity)
    return identity


def partner_table(study: Study, sae: SAE, second: SAE) -> pd.DataFrame:
    """Pair the latents of an autoencoder with those of a second, and name the partners."""
    number, cosine = partners(sae.W_dec, second.W_dec)
    split = study.naming
    names = name_latents(activity(second, split.tokens), split.shown)["name"].to_numpy()
    columns = {"latent": range(len(number)), "partner cosine": cosine}
    return pd.DataFrame(columns | {"partner name": names[number.numpy()]})


def at(study: Study, name: str) -> Study:
    """Return the study at the block of one of `TRAINED`."""
    return study.at_block(study.clip.block + TRAINED[name][0], len(study.train))


def trained(study: Study, name: str) -> SAE:
    """Train one of `TRAINED`, or go on where it was."""
    source, config = at(study, name), replace(study.profile.train, seed=TRAINED[name][1])
    checkpoint = study.folder / f"{name}.training.safetensors"
    given = source.train.tokens, study.profile.sae, config, checkpoint, study.device
    return train(*given)[0]


def card(study: Study, sae: SAE) -> str:
    """Measure an autoencoder on held-out pictures and return its card."""
    profile = study.profile
    test = study.open("world:styles", "test", profile.pictures.n_test)
    report = evaluate_sae(sae, test.held_out).measures
    z = test.tokens[:][:, 1:].float()
    sets = {"latents": sae.encode, **baselines(z, sae.d_sae)}
    scores = compare_units(sets, z, test.truth, minimum=profile.min_patches)
    intervals = mean_scores(scores, "units", "iou")[["units", "concepts", "iou", "low", "high"]]
    silent, often = silent_and_often(study, sae)
    return CARD.format(
        d_sae=sae.d_sae,
        d_vit=sae.d_vit,
        block=study.clip.block + 1,
        n_train=profile.pictures.n_train,
        steps=profile.train.steps,
        batch=profile.train.batch_tokens,
        l1=profile.sae.l1,
        lr=profile.train.lr,
        device=device_name(study.device),
        n_test=len(test),
        n_shown=N_SHOWN,
        silent=silent,
        often=often,
        tau=profile.statistics.tau,
        measures=table(["measure", "value"], [(k, f"{v:.4f}") for k, v in report.items()]),
        truth=table(
            ["units", "concepts", "mean IoU", "95 % interval"],
            [
                (units, concepts, f"{mean:.3f}", f"{low:.3f} – {high:.3f}")
                for units, concepts, mean, low, high in intervals.itertuples(index=False)
            ],
        ),
    )


def silent_and_often(study: Study, sae: SAE) -> tuple[float, float]:
    """Return the shares (0..1) of latents that are active in no picture of everything, and that
    are above τ in more than half of them."""
    tokens = study.open("world:world", "test", N_SHOWN).tokens
    cuts, counts = sae.cuts(study.profile.statistics.tau), torch.zeros(2, sae.d_sae)
    for z in tokens.split(50):
        f = sae.encode(z.float())
        counts += torch.stack([(f > cut).any(1).sum(0) for cut in (0, cuts)]).cpu()
    return float((counts[0] == 0).float().mean()), float((counts[1] > N_SHOWN / 2).float().mean())


def table(head: list[str], rows: list[tuple]) -> str:
    """Return a table in markdown.

    >>> print(table(["a", "b"], [(1, 2)]))
    | a | b |
    |---|---|
    | 1 | 2 |
    """
    lines = [f"| {' | '.join(map(str, row))} |" for row in (head, *rows)]
    return "\n".join([lines[0], f"|{'---|' * len(head)}", *lines[1:]])


def main(argv: list[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m recipes.autoencoder", description=__doc__)
    parser.add_argument("--out", type=Path, default=DATA / "sae.safetensors")
    parser.add_argument("--pictures", type=int, default=30_000)
    parser.add_argument("--steps", type=int, default=16_000)
    parser.add_argument("--l1", type=float, default=5e-4)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--only", choices=[*TRAINED], help="train one of them, and write nothing")
    given = parser.parse_args(argv)
    world = load_profile("world")
    profile = replace(
        world,
        name="shipped",  # tokens and checkpoints go to runs/shipped/
        pictures=replace(world.pictures, n_train=given.pictures),
        sae=replace(world.sae, l1=given.l1),
        train=replace(world.train, steps=given.steps, lr=given.lr, checkpoint_every=250),
    )
    if given.only:
        trained(Study(profile), given.only)
    else:
        make(Study(profile), given.out)


if __name__ == "__main__":
    main()
