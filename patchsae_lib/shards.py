"""Residual tokens of more pictures than one file should hold: a folder of shards.

The folder has, in the format `patchsae-tokens-1`:

- `00000.safetensors`, `00001.safetensors`, …, each of a stretch of the pictures: `tokens`
  (images, 1 + n_patches, d_vit), bfloat16 or float16, the CLS token of an image first and then its
  patches row by row; `indices` (images,) int64, which picture each row is, ascending; `labels`
  (images,) int64, its class, −1 where there is none. Metadata: `made_by`, the `hash` below, and
  `pictures`, the stretch as "first-last".
- `cache.json`, written last, so that a folder that has it is whole: `format`; `made_by`, what
  the tokens depend on (model, weights, block, precision; where the pictures are and how many);
  `hash`, the first 16 hex digits of the SHA-256 of `made_by` as JSON with sorted keys; `dtype`,
  `tokens` (1 + n_patches) and `d_vit`; `class_names`; `shards`, a list of `file` and `images`;
  `skipped`, the indices of pictures that could not be read and are in no shard.

Neither the pictures nor CLIP are needed to read it. Shards are memory-mapped, so that a cache may
be larger than memory.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

from patchsae_lib.activations import (
    MANY,
    TokenCache,
    open_cache,
    read_pictures,
    residual_tokens,
    token_rows,
)
from patchsae_lib.artefacts import _difference, _plain, atomic_path, config_hash, write_json
from patchsae_lib.clip import SplitCLIP
from patchsae_lib.distributed import from_first, rank, wait_for_all, world_size
from patchsae_lib.images import Pictures
from patchsae_lib.profiles import TrainConfig

FORMAT = "patchsae-tokens-1"
ABOUT = "cache.json"
SHARD = 1024  # pictures: 310 MB of ViT-B/16
BUFFER = 16  # shards that are mixed: 3 million tokens of ViT-B/16


@dataclass(frozen=True)
class Shards:
    """A whole cache; what is in its `files`, of `sizes` images each, is read when asked for."""

    folder: Path
    made_by: dict[str, Any]
    n_tokens: int
    d_vit: int
    class_names: tuple[str, ...]
    files: tuple[str, ...]
    sizes: tuple[int, ...]
    skipped: tuple[int, ...]

    def read(self, number: int) -> tuple[TokenCache, Tensor]:
        """The memory-mapped tokens of a shard, and the labels (images,) of its pictures.

        Raises `ValueError` if the file is not the one that `cache.json` lists.
        """
        path = self.folder / self.files[number]
        cache = open_cache(path)
        expected = self.sizes[number], self.n_tokens, self.d_vit
        if tuple(cache.tokens.shape) != expected:
            raise ValueError(
                f"{path} holds tokens {tuple(cache.tokens.shape)}, {ABOUT} says {expected}: "
                "delete the folder, and collect them again"
            )
        with safe_open(path, framework="pt") as file:
            return cache, file.get_tensor("labels")


def open_shards(folder: str | Path, made_by: Mapping[str, Any] | None = None) -> Shards:
    """The cache in a folder; of `made_by` if that is given.

    Raises `FileNotFoundError` where no whole cache is, and `ValueError` if it is of another format
    or made by something else.
    """
    folder = Path(folder)
    path = folder / ABOUT
    if not path.is_file():
        raise FileNotFoundError(
            f"no {path}: the tokens are not collected, or not to the end; "
            "python -m patchsae_lib train does so, and goes on where it was"
        )
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
        if about["format"] != FORMAT:
            raise ValueError(f"its format is {about['format']!r}")
        files, sizes = zip(*((s["file"], s["images"]) for s in about["shards"]), strict=True)
        names, skipped = tuple(about["class_names"]), tuple(about["skipped"])
        shape = about["tokens"], about["d_vit"]
        shards = Shards(folder, about["made_by"], *shape, names, files, sizes, skipped)
        made_with = about["hash"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} does not describe a cache {FORMAT}: {error!r}") from error
    if made_by is not None and config_hash(made_by) != made_with:
        raise ValueError(
            f"{folder} was made by {made_with}, this is {config_hash(made_by)} "
            f"({_difference(shards.made_by, _plain(made_by))}): give another folder, or delete it"
        )
    if missing := [file for file in files if not (folder / file).is_file()]:
        raise FileNotFoundError(
            f"{len(missing)} of {len(files)} shards are missing in {folder}, the first is "
            f"{missing[0]}: copy them too, or delete {path} to collect them again"
        )
    return shards


# --- collecting --------------------------------------------------------------------------------


def collect_shards(
    clip: SplitCLIP,
    pictures: Pictures,
    folder: str | Path,
    made_by: Mapping[str, Any],
    shard: int = SHARD,
    batch: int = 32,
    progress: bool = True,
) -> Shards:
    """The residual tokens of all pictures, `shard` pictures a file, in a folder all processes see.

    Every process makes its share of the shards. Those that are there already and of the same
    `made_by` are kept, so that a collection that was killed goes on; a whole cache is opened.
    Pictures whose reading raises `OSError` are skipped and listed.

    Raises `ValueError` for no pictures, more than 1 % that cannot be read, tokens that are no
    numbers, and a folder that holds something else's tokens.
    """
    folder = Path(folder)
    # One process asks: what a network's file system has once denied it denies for a while.
    there = torch.tensor(int(rank() == 0 and (folder / ABOUT).is_file()))
    if from_first(there):
        return open_shards(folder, made_by)
    if not len(pictures):
        raise ValueError("no pictures to collect tokens of")
    skipped: list[int] = []
    stretches = [
        range(start, min(start + shard, len(pictures))) for start in range(0, len(pictures), shard)
    ]
    files = [f"{i:05}.safetensors" for i in range(len(stretches))]
    about = [{"made_by": config_hash(made_by), "pictures": f"{s[0]}-{s[-1]}"} for s in stretches]
    mine = range(rank(), len(stretches), world_size())
    with tqdm(
        total=sum(len(stretches[i]) for i in mine),
        desc=f"tokens of {len(pictures)} pictures",
        unit=" pictures",
        **({} if progress and rank() == 0 else {"disable": True}),  # else TQDM_DISABLE decides
    ) as bar:
        for i in mine:
            if _metadata(folder / files[i]) == about[i]:
                bar.update(len(stretches[i]))
                continue
            tensors = _collect_shard(clip, pictures, stretches[i], batch, skipped, bar)
            _check_skipped(skipped, pictures, folder)
            with atomic_path(folder / files[i]) as temporary:
                save_file(tensors, temporary, about[i])
    wait_for_all()
    if rank() == 0:
        _finish(folder, made_by, pictures, files)
    wait_for_all()
    return open_shards(folder, made_by)


def _collect_shard(
    clip: SplitCLIP,
    pictures: Pictures,
    stretch: range,
    batch: int,
    skipped: list[int],
    bar: Any,
) -> dict[str, Tensor]:
    tokens, indices = [], []
    for start in range(0, len(stretch), batch):
        some = stretch[start : start + batch]
        read, images = read_pictures(pictures, some, skipped)
        if read:
            tokens.append(residual_tokens(clip, images, torch.bfloat16, read))
            indices += read
        bar.update(len(some))
    if not indices:
        raise ValueError(f"none of the pictures {stretch[0]} … {stretch[-1]} can be read")
    labels = torch.tensor([pictures.label(i) for i in indices])
    return {"tokens": torch.cat(tokens), "indices": torch.tensor(indices), "labels": labels}


def _metadata(path: Path) -> dict[str, str]:
    """What a shard says of itself; nothing if it is not there or not whole."""
    try:
        with safe_open(path, framework="pt") as file:
            return file.metadata() or {}
    except (SafetensorError, OSError):
        return {}


def _check_skipped(skipped: Sequence[int], pictures: Pictures, folder: Path) -> None:
    if len(skipped) > MANY * len(pictures):
        raise ValueError(
            f"{len(skipped)} of {len(pictures)} pictures cannot be read, more than {MANY:.0%}; "
            f"the first is number {skipped[0]}. Mend them, delete {folder}, and start again"
        )


def _finish(
    folder: Path, made_by: Mapping[str, Any], pictures: Pictures, files: Sequence[str]
) -> None:
    """Write `cache.json`."""
    caches = [open_cache(folder / file) for file in files]
    there = {i for cache in caches for i in cache.indices.tolist()}
    skipped = [i for i in range(len(pictures)) if i not in there]
    _check_skipped(skipped, pictures, folder)
    _, n_tokens, d_vit = caches[0].tokens.shape
    write_json(
        folder / ABOUT,
        {
            "format": FORMAT,
            "made_by": dict(made_by),
            "hash": config_hash(made_by),
            "dtype": "bfloat16",
            "tokens": n_tokens,
            "d_vit": d_vit,
            "class_names": pictures.class_names,
            "shards": [
                {"file": file, "images": len(cache.indices)}
                for file, cache in zip(files, caches, strict=True)
            ],
            "skipped": skipped,
        },
    )


# --- batches -----------------------------------------------------------------------------------


def shard_batches(
    shards: Shards, config: TrainConfig, seed: int, start_step: int = 0, buffer: int = BUFFER
) -> Iterator[Tensor]:
    """`token_batches` of a cache in shards, which are shuffled and mixed `buffer` at a time.

    Every token of every shard comes once in a pass. With a fixed `cls_share` CLS tokens pass at a
    pace of their own, hence from other shards than the patches.
    """
    first = np.cumsum([0, *shards.sizes]) * shards.n_tokens

    @lru_cache(maxsize=2 * buffer)
    def flat(number: int) -> Tensor:
        return shards.read(number)[0].tokens.flatten(0, 1)

    sizes, n_tokens = shards.sizes, shards.n_tokens
    for rows in token_rows(sizes, n_tokens, config, seed, start_step, buffer):
        ends = pairwise(np.searchsorted(rows, first))
        parts = [
            flat(i)[torch.from_numpy(rows[a:b] - first[i])]
            for i, (a, b) in enumerate(ends)
            if a < b
        ]
        yield torch.cat(parts).float()
