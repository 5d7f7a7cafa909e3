"""Training and scanning as commands, by one process or by many that `torchrun` starts.

    python -m patchsae_lib train --profile clip -p images folder:/my/photos
    torchrun --nproc-per-node=gpu -m patchsae_lib train --profile clip -p images folder:/my/photos
    torchrun --nproc-per-node=gpu -m patchsae_lib scan --profile clip -p images folder:/my/photos

They leave `sae.safetensors` and `latents.safetensors` in `runs/<profile>/`, which all nodes must
see, as notebooks 1 and 2 do. Started again after a kill, `train` goes on where it was, and so does
`scan` of pictures with the same number of processes.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import reduce
from pathlib import Path

import numpy as np
import torch

from patchsae_lib import latents, training
from patchsae_lib.artefacts import config_hash, short
from patchsae_lib.distributed import first_alone, my_part, processes, rank, wait_for_all
from patchsae_lib.distributed import world_size as n_processes
from patchsae_lib.latents import LatentTable
from patchsae_lib.parameters import check_names, profile_parser
from patchsae_lib.pictures import Pictures
from patchsae_lib.profiles import load_profile
from patchsae_lib.study import CHECKED, Study
from patchsae_lib.tokens import ABOUT, open_shards

KEPT_EVERY = 16_384  # pictures of a process after which its table is kept


def train(argv: Sequence[str] | None = None) -> None:
    """Run `python -m patchsae_lib train`."""
    parser = profile_parser("python -m patchsae_lib train", "Train an autoencoder on shards.")
    parser.add_argument(
        "--tokens", type=Path, metavar="FOLDER",
        help="shards that are there already; without, runs/<profile>/tokens/ gets them",
    )  # fmt: skip
    given = _parse(parser, argv)
    with processes() as device:
        study = _study(given, device)
        tokens = open_shards(given.tokens) if given.tokens else study.train.tokens
        n_tokens = len(tokens) * tokens.n_tokens
        if rank() == 0:
            print(f"{len(tokens):,} pictures, {n_tokens:,} tokens of width {tokens.d_vit}")
        config, checkpoint = study.fitted(n_tokens), study.folder / "training-shards.safetensors"
        sae, history = training.train(tokens, config.sae, config.train, checkpoint, device)
        if rank() == 0:
            study.keep("sae.safetensors", sae)
            steps, last, path = config.train.steps, history[-1], study.folder / "sae.safetensors"
            print(
                f"{steps:,} steps: L0 {last['l0']:.1f}, {last['dead']:.1%} of {sae.d_sae:,} "
                f"latents dead, explained variance {last['explained_variance']:.3f}: {short(path)}"
            )


def scan(argv: Sequence[str] | None = None) -> None:
    """Run `python -m patchsae_lib scan`."""
    parser = profile_parser("python -m patchsae_lib scan", "Count what activates every latent.")
    parser.add_argument(
        "--sae", default="live", metavar="FILE",
        help="a file, or shipped; without, what train or notebook 1 has written",
    )  # fmt: skip
    given = _parse(parser, argv)
    with processes() as device:
        study = _study(given, device)
        key, n = config_hash(study.identity()), n_processes()
        kept = [study.folder / f".latents-{key}-{i}-of-{n}.safetensors" for i in range(n)]
        spec = study.profile.pictures.spec
        pictures = study.training_pictures(spec)
        has_shards = (study.place(pictures, spec, "train")[0] / ABOUT).is_file()
        shards = has_shards or not pictures.class_names  # labels are predicted from tokens
        table = _scan_shards(study) if shards else _scan_pictures(study, pictures, kept[rank()])
        table.save(kept[rank()])
        wait_for_all()
        if rank() == 0:
            table = reduce(LatentTable.merge, map(LatentTable.load, kept))
            if not shards and len(pictures) >= CHECKED:
                # numbers of reference images as in `Study.train`, which leaves out unreadable ones
                skipped = torch.tensor(table.skipped, dtype=torch.long)
                table.top_images -= torch.searchsorted(skipped, table.top_images)
            _keep(study, table, key)


def _keep(study: Study, table: LatentTable, key: str) -> None:
    """Keep the table of all processes in place of theirs."""
    study.keep("latents.safetensors", table)
    for old in study.folder.glob(f".latents-{key}-*"):
        old.unlink()
    n_active = int((table.n_images > 0).sum())
    print(
        f"{table.images:,} pictures, {len(table.skipped)} unreadable; {n_active:,} of "
        f"{study.sae.d_sae:,} latents active: {short(study.folder / 'latents.safetensors')}"
    )


def _parse(parser: argparse.ArgumentParser, argv: Sequence[str] | None) -> argparse.Namespace:
    given = parser.parse_args(argv)
    check_names(dict(given.parameters), ["images"])
    load_profile(given.profile)  # an unknown one ends here, before processes are joined
    return given


def _study(given: argparse.Namespace, device: torch.device) -> Study:
    """Open the study of this process; process 0 downloads first what has to be downloaded."""
    sae = getattr(given, "sae", "")
    with first_alone():
        study = Study(given.profile, **dict(given.parameters), sae=sae, device=device)
        study.training_pictures(study.profile.pictures.spec)  # which loads CLIP, too
    return study


def _scan_shards(study: Study) -> LatentTable:
    """Count this process's part of the shards."""
    split, ends = study.train, np.cumsum([0, *study.train.tokens.sizes]).tolist()
    part = my_part(len(ends) - 1)
    rows = torch.arange(ends[part.start], ends[part.stop])
    counted = split.tokens.select(rows), split.labels[rows], split.class_names
    table = latents.scan_tokens(study.sae, *counted, study.profile.statistics)
    table.skipped = list(split.tokens.skipped) if rank() == 0 else []
    return table


def _scan_pictures(study: Study, pictures: Pictures, kept: Path) -> LatentTable:
    """Count this process's part of the pictures, except those that the table `kept` has."""
    config, n = study.profile.statistics, len(pictures)
    empty = LatentTable.empty(study.sae.d_sae, pictures.class_names, config)
    table = LatentTable.load(kept) if kept.is_file() else empty
    unseen = range(n)[my_part(n)][table.images + len(table.skipped) :]
    for stretch in np.array_split(unseen, -(-len(unseen) // KEPT_EVERY)) if unseen else []:
        chosen = pictures, stretch.tolist(), config
        table = table.merge(latents.scan(study.clip, study.sae, *chosen, progress=rank() == 0))
        table.save(kept)
    return table
