"""Training and scanning as commands, by one process or by many that `torchrun` starts.

    python -m patchsae_lib train --profile clip -p images folder:/my/photos
    torchrun --nproc-per-node=gpu -m patchsae_lib train --profile clip -p images folder:/my/photos
    torchrun --nproc-per-node=gpu -m patchsae_lib scan --profile clip -p images folder:/my/photos

They leave `sae.safetensors` and `latents.safetensors` in `runs/<profile>/`, as notebooks 1 and 2
do. Started again after a kill, `train` goes on where it was, also with another number of
processes; `scan` of pictures likewise with the same number, and of shards it begins anew. Of
several nodes all must see that folder, and the pictures.
"""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Sequence
from functools import partial, reduce
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save

from patchsae_lib import latents, training
from patchsae_lib.artefacts import config_hash
from patchsae_lib.checkpoints import save_sae
from patchsae_lib.clip import SplitCLIP, load_clip
from patchsae_lib.distributed import (
    first_alone,
    my_part,
    processes,
    rank,
    wait_for_all,
    world_size,
)
from patchsae_lib.images import Pictures, open_pictures
from patchsae_lib.latents import LatentTable
from patchsae_lib.maple import fingerprint
from patchsae_lib.notebooks import autoencoder, begin, check_names, short
from patchsae_lib.profiles import Profile, fit_to
from patchsae_lib.sae import SAE
from patchsae_lib.shards import ABOUT, Shards, collect_shards, open_shards, shard_batches

KEPT_EVERY = 16_384  # pictures of a process after which its table is kept
CHECKED = 100_000  # fewer pictures are tried first; of more, those that fail are skipped


def train(argv: Sequence[str] | None = None) -> None:
    """The command line of `python -m patchsae_lib train`."""
    parser = _parser("train", "Train the autoencoder of a profile, from shards of tokens.")
    parser.add_argument(
        "--tokens", type=Path, metavar="FOLDER",
        help="shards that are there already; without, runs/<profile>/tokens/ gets them",
    )  # fmt: skip
    profile, out, given = _begin(parser, argv)
    with processes() as device:
        shards = open_shards(given.tokens) if given.tokens else _collect(profile, out, device)
        n_tokens = sum(shards.sizes) * shards.n_tokens
        _say(
            f"{sum(shards.sizes):,} pictures, {n_tokens:,} tokens of width {shards.d_vit}: "
            f"{short(shards.folder)}"
        )
        profile = fit_to(profile, n_tokens)
        batches = partial(shard_batches, shards, profile.train, profile.train.seed)
        checkpoint = out / "training-shards.safetensors"
        sae, history = training.train(batches, profile.sae, profile.train, checkpoint, device)
        if rank() == 0:
            path, about = out / "sae.safetensors", {"profile": profile.name}
            save_sae(path, sae, about | {"model": shards.made_by.get("model")})
            last = history[-1]
            print(
                f"{profile.train.steps:,} steps: explained variance "
                f"{last['explained_variance']:.3f}, L0 {last['l0']:.1f}, {last['dead']:.1%} of "
                f"{sae.d_sae:,} latents dead: {short(path)}"
            )


def scan(argv: Sequence[str] | None = None) -> None:
    """The command line of `python -m patchsae_lib scan`."""
    parser = _parser("scan", "Count what every latent is active on, from shards if there are any.")
    parser.add_argument(
        "--sae", default="live", metavar="FILE",
        help="a file, or shipped; without, what train or notebook 1 has written",
    )  # fmt: skip
    profile, out, given = _begin(parser, argv)
    with processes() as device:
        sae = autoencoder(profile, out, given.sae).to(device)
        clip, pictures, made_by = _source(profile, device)
        folder = out / "tokens" / config_hash(made_by)
        digest = hashlib.sha256(save(sae.state_dict())).hexdigest()
        key = config_hash({"tokens": made_by, "sae": digest})
        kept = [
            out / f".latents-{key}-{i}-of-{world_size()}.safetensors" for i in range(world_size())
        ]
        if (folder / ABOUT).is_file():
            table = _scan_shards(sae, open_shards(folder, made_by))
        else:
            table = _scan_pictures(clip, sae, pictures, kept[rank()])
        table.save(kept[rank()])
        wait_for_all()
        if rank() == 0:
            table = reduce(LatentTable.merge, map(LatentTable.load, kept))
            path = out / "latents.safetensors"
            table.save(path)
            for old in out.glob(f".latents-{key}-*"):
                old.unlink()
            print(
                f"{table.images:,} pictures, {len(table.skipped)} unreadable; "
                f"{int((table.n_images > 0).sum()):,} of {sae.d_sae:,} latents active: "
                f"{short(path)}"
            )


def _parser(command: str, what: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=f"python -m patchsae_lib {command}", description=what)
    parser.add_argument(
        "--profile", default="world", help="smoke, world, trial, clip, paper or a .toml"
    )
    parser.add_argument(
        "-p", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"), dest="parameters",
        help="other pictures than the profile's: -p images folder:/my/photos",
    )  # fmt: skip
    return parser


def _begin(
    parser: argparse.ArgumentParser, argv: Sequence[str] | None
) -> tuple[Profile, Path, argparse.Namespace]:
    given = parser.parse_args(argv)
    parameters = dict(given.parameters)
    check_names(parameters, ["images"])
    return *begin(given.profile, **parameters), given


def _source(profile: Profile, device: torch.device) -> tuple[SplitCLIP, Pictures, dict[str, Any]]:
    """CLIP, the pictures to train on, and all that the tokens of these depend on."""
    chosen = profile.pictures
    with first_alone():
        clip = load_clip(profile.model).to(device)
        size = clip.visual.image_size[0]
        pictures = open_pictures(chosen.spec, "train", chosen.n_train, size, check=False)
        if len(pictures) < CHECKED:
            pictures = open_pictures(chosen.spec, "train", chosen.n_train, size)
    kind, _, name = chosen.spec.partition(":")
    spec = f"folder:{Path(name).expanduser().resolve()}" if kind == "folder" else chosen.spec
    what = {"spec": spec, "split": "train", "n": len(pictures), "size": size}
    model = {"name": profile.model.name, "weights": fingerprint(clip), "block": clip.block}
    model["precision"] = "float32" if clip.first is None else "bfloat16"
    return clip, pictures, {"model": model, "pictures": what}


def _collect(profile: Profile, out: Path, device: torch.device) -> Shards:
    clip, pictures, made_by = _source(profile, device)
    return collect_shards(clip, pictures, out / "tokens" / config_hash(made_by), made_by)


def _scan_shards(sae: SAE, shards: Shards) -> LatentTable:
    """The table of this process's part of the shards."""
    table = LatentTable.empty(sae.d_sae, shards.class_names)
    for i in range(len(shards.files))[my_part(len(shards.files))]:
        cache, labels = shards.read(i)
        table = table.merge(latents.scan_cache(sae, cache, labels, shards.class_names))
    table.skipped = list(shards.skipped) if rank() == 0 else []
    return table


def _scan_pictures(clip: SplitCLIP, sae: SAE, pictures: Pictures, kept: Path) -> LatentTable:
    """The table of this process's part of the pictures; what `kept` has is not done again."""
    if kept.is_file():
        table = LatentTable.load(kept)
    else:
        table = LatentTable.empty(sae.d_sae, pictures.class_names)
    rest = range(len(pictures))[my_part(len(pictures))][table.images + len(table.skipped) :]
    for some in np.array_split(rest, -(-len(rest) // KEPT_EVERY)) if rest else []:
        more = latents.scan(clip, sae, pictures, some.tolist(), progress=rank() == 0)
        table = table.merge(more)
        table.save(kept)
    return table


def _say(text: str) -> None:
    if rank() == 0:
        print(text, flush=True)
