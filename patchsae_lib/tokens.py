"""Residual tokens of many pictures, in memory or in shards on disk (paper section 3.1).

`Tokens` is what training, scans and measurements read. Like a tensor (images, n_tokens, d_vit) it
has `shape`, `len`, `tokens[rows]` and `tokens.split(n)`, but it reads tokens only when they are
asked for, so that a million pictures need no more memory than a thousand.

On disk tokens are a folder in the format `patchsae-tokens-1`, which can be read without the
pictures and without CLIP:

- `00000.safetensors`, `00001.safetensors`, …, each a shard, for consecutive pictures: `tokens`
  (images, 1 + n_patches, d_vit), bfloat16 or float16, the CLS token of an image first and then its
  patches row by row; `indices` (images,) int64, which picture each row is, ascending; `labels`
  (images,) int64, its class, −1 for none. Metadata: `made_by`, the `hash` below, and `pictures`,
  their range as "first-last".
- `cache.json`, written last, which marks the folder as complete: `format`; `made_by`, what
  decides the tokens (CLIP's weights and block, the pictures, the precision), and its `hash`;
  `dtype`; `tokens` of an image and their width `d_vit`; `class_names`; `shards`, a `file` and its
  number of `images` each; `skipped`, the pictures that could not be read.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import count, islice, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from patchsae_lib.artefacts import atomic_path, config_hash, difference, plain, write_json
from patchsae_lib.clip import SplitCLIP
from patchsae_lib.distributed import from_first, my_part, rank, wait_for_all, world_size
from patchsae_lib.pictures import Pictures
from patchsae_lib.pictures.naming import require_readable
from patchsae_lib.pictures.reading import Batch, read_batches
from patchsae_lib.profiles import TrainConfig
from patchsae_lib.sae import require_tokens

FORMAT = "patchsae-tokens-1"
ABOUT = "cache.json"
SHARD = 1024  # pictures of a file: 310 MB of ViT-B/16
BUFFER = 16  # shards that are mixed: 3 million tokens of ViT-B/16


@dataclass(frozen=True)
class Tokens:
    """Residual tokens z (images, n_tokens, d_vit) of pictures, the CLS token of an image first.

    `indices` (images,): which picture each row is. `read(i)` returns shard i, of `sizes[i]`
    images; `rows`: which of their rows are selected (None: all). `skipped` lists the pictures
    that could not be read.
    """

    read: Callable[[int], Tensor]
    sizes: tuple[int, ...]
    n_tokens: int
    d_vit: int
    indices: Tensor
    skipped: tuple[int, ...] = ()
    rows: Tensor | None = None

    @classmethod
    def hold(cls, z: Tensor, indices: Tensor | None = None) -> Tokens:
        """Wrap tokens z (images, n_tokens, d_vit) that are in memory.

        Raises `ValueError` for another shape, for no tokens, and for NaN, infinity or zero tokens.
        """
        if z.ndim != 3 or z.numel() == 0:
            raise ValueError(f"tokens are (images, n_tokens, d_vit), got {tuple(z.shape)}")
        indices = torch.arange(len(z)) if indices is None else indices
        if tuple(indices.shape) != tuple(z.shape[:1]):
            raise ValueError(f"{len(z)} images, but indices {tuple(indices.shape)}")
        require_tokens(z, "the tokens")
        return cls(lambda _: z, (len(z),), z.shape[1], z.shape[2], indices)

    def __len__(self) -> int:
        return len(self.indices)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(images, n_tokens, d_vit)."""
        return len(self), self.n_tokens, self.d_vit

    def __getitem__(self, rows: slice | Sequence[int] | Tensor) -> Tensor:
        """Read the tokens (n, n_tokens, d_vit) of rows, in their stored precision."""
        at = self._stored(rows)
        if len(self.sizes) == 1:
            return self.read(0)[at]
        ends = torch.tensor(self.sizes).cumsum(0)
        shard = torch.searchsorted(ends, at, right=True)
        used = shard.unique().tolist()
        parts = [self.read(i)[at[shard == i] - ends[i] + self.sizes[i]] for i in used]
        return torch.cat(parts)[shard.argsort(stable=True).argsort()]

    def split(self, n: int) -> Iterator[Tensor]:
        """Read the tokens of n images at a time, in order."""
        return (self[start : start + n] for start in range(0, len(self), n))

    def first(self, n: int) -> Tokens:
        """Choose the first n images, without reading them; unlike a selection, for training."""
        if self.rows is not None:
            return self.select(slice(n))
        ends = np.cumsum([0, *self.sizes]).clip(max=n)
        sizes = tuple(np.diff(ends)[np.diff(ends) > 0].tolist())
        read, indices = lambda i: self.read(i)[: sizes[i]], self.indices[:n]
        return replace(self, read=read, sizes=sizes, indices=indices)

    def select(self, rows: slice | Sequence[int] | Tensor) -> Tokens:
        """Choose rows, in the order given, without reading them."""
        return replace(self, rows=self._stored(rows), indices=self.indices[rows])

    def _stored(self, rows: slice | Sequence[int] | Tensor) -> Tensor:
        """Return the numbers of rows in the shards."""
        if self.rows is None and isinstance(rows, slice):  # of millions, a few are asked for
            return torch.arange(*rows.indices(len(self)))
        return (torch.arange(len(self)) if self.rows is None else self.rows)[rows]

    def row_of(self, pictures: Tensor) -> Tensor:
        """Return the rows (n,) of pictures (n,); `ValueError` if one is not among `indices`."""
        if not torch.isin(pictures, self.indices).all():
            raise ValueError("some of these pictures have no tokens here: they are of other ones")
        table = torch.full((int(self.indices.max()) + 1,), -1)
        table[self.indices] = torch.arange(len(self))
        return table[pictures]

    def mixed(self, config: TrainConfig, seed: int, start_step: int = 0) -> Iterator[Tensor]:
        """Yield training batches z (batch_tokens, d_vit) float32, endlessly, from `start_step` on.

        Tokens of all images are mixed (of 16 shuffled shards at a time), and none comes twice
        before all of its kind have come once. `cls_share` of a batch, rounded to whole tokens, are
        CLS tokens; if it is negative, as many as come by chance. With `tokens = "cls"` all are.
        Batch i depends on (seed, i) only, so training resumes at any step without a replay. Under
        torchrun each process gets its part of a batch.
        Deviation: the authors' class-token option takes the first image of a batch instead.

        Raises `ValueError` for selected rows, and for a share of patches where there are none.
        """
        if self.rows is not None:
            raise ValueError("a selection of rows is not for training: collect these pictures")
        first = np.cumsum([0, *self.sizes]) * self.n_tokens
        flat = lru_cache(maxsize=2 * BUFFER)(lambda number: self.read(number).flatten(0, 1))
        for rows in token_rows(self.sizes, self.n_tokens, config, seed, start_step):
            ends = pairwise(np.searchsorted(rows, first))
            parts = [
                flat(i)[torch.from_numpy(rows[start:end] - first[i])]
                for i, (start, end) in enumerate(ends)
                if start < end
            ]
            yield torch.cat(parts).float()


def collect(clip: SplitCLIP, pictures: Pictures) -> Tokens:
    """Collect the residual tokens of all pictures, in memory, in bfloat16.

    Raises `ValueError` for no pictures, and for tokens that are NaN, infinite or zero, and
    `OSError` for a picture that cannot be read.
    """
    if not len(pictures):
        raise ValueError("no pictures to collect tokens of")
    parts = _stretches(range(len(pictures)), clip.at_once)
    tokens = [_tokens_of(clip, images, part) for part, images in read_batches(pictures, parts)]
    return Tokens.hold(torch.cat(tokens))


def _stretches(indices: range, n: int) -> list[range]:
    return [indices[start : start + n] for start in range(0, len(indices), n)]


@torch.no_grad()
def _tokens_of(clip: SplitCLIP, images: Tensor, indices: Sequence[int]) -> Tensor:
    """Compute z (b, 1 + n_patches, d_vit) of images (b, 3, h, w) uint8, the pictures `indices`."""
    z = clip.tokens(clip.preprocess(images)).to("cpu", torch.bfloat16)
    require_tokens(z, f"pictures {indices[0]} … {indices[-1]}")
    return z


def collect_shards(
    clip: SplitCLIP, pictures: Pictures, folder: str | Path, made_by: Mapping[str, Any]
) -> Tokens:
    """Collect the tokens of all pictures into a folder that all processes see, in bfloat16.

    Each process makes its share of the shards. Shards of the same `made_by` are kept, so that a
    collection that was killed goes on; a complete folder is opened. Pictures whose reading raises
    `OSError` are skipped and listed.

    Raises `ValueError` for no pictures, more than 1 % that cannot be read, tokens that are NaN,
    infinite or zero, and a folder with the tokens of something else.
    """
    folder, n = Path(folder), len(pictures)
    # One process asks: what a network's file system has once denied it denies for a while.
    if from_first(torch.tensor(int(rank() == 0 and (folder / ABOUT).is_file()))):
        return open_shards(folder, made_by)
    if not n:
        raise ValueError("no pictures to collect tokens of")
    paths = {folder / f"{i:05}.safetensors": s for i, s in enumerate(_stretches(range(n), SHARD))}
    share, made, skipped = [*paths][rank() :: world_size()], config_hash(made_by), list[int]()
    abouts = {p: {"made_by": made, "pictures": f"{paths[p][0]}-{paths[p][-1]}"} for p in share}
    missing = [path for path in share if _metadata(path) != abouts[path]]
    at_once = clip.at_once  # asked once: a GPU has less room as it goes on
    parts = [part for path in missing for part in _stretches(paths[path], at_once)]
    title = f"tokens of {n} pictures" if rank() == 0 else ""
    with closing(read_batches(pictures, parts, skipped, title)) as batches:
        for path in missing:
            of_shard = islice(batches, -(-len(paths[path]) // at_once))
            tensors = _collect_shard(clip, pictures, of_shard, paths[path])
            require_readable(skipped, n, f"Mend them, delete {folder}, and start again")
            with atomic_path(path) as temporary:
                save_file(tensors, temporary, abouts[path])
    wait_for_all()
    if rank() == 0:
        _write_about(folder, made_by, pictures, list(paths))
    wait_for_all()
    return open_shards(folder, made_by)


def _collect_shard(
    clip: SplitCLIP, pictures: Pictures, batches: Iterator[Batch], stretch: range
) -> dict[str, Tensor]:
    tokens, indices = [], []
    for readable, images in batches:
        if readable:
            tokens.append(_tokens_of(clip, images, readable))
            indices += readable
    if not indices:
        raise ValueError(f"none of the pictures {stretch[0]} … {stretch[-1]} can be read")
    labels = torch.tensor([pictures.label(i) for i in indices])
    return {"tokens": torch.cat(tokens), "indices": torch.tensor(indices), "labels": labels}


def _write_about(
    folder: Path, made_by: Mapping[str, Any], pictures: Pictures, paths: Sequence[Path]
) -> None:
    """Write `cache.json`."""
    indices = [_read_shard(path, "indices").clone() for path in paths]
    is_skipped = torch.ones(len(pictures), dtype=torch.bool)
    is_skipped[torch.cat(indices)] = False
    skipped = is_skipped.nonzero()[:, 0].tolist()
    require_readable(skipped, len(pictures), f"Mend them, delete {folder}, and start again")
    _, n_tokens, d_vit = _read_shard(paths[0], "tokens").shape
    shards = [{"file": p.name, "images": len(i)} for p, i in zip(paths, indices, strict=True)]
    about: dict[str, Any] = dict(format=FORMAT, made_by=made_by, hash=config_hash(made_by))
    about |= dict(dtype="bfloat16", tokens=n_tokens, d_vit=d_vit, shards=shards, skipped=skipped)
    write_json(folder / ABOUT, about | {"class_names": pictures.class_names})


def open_shards(folder: str | Path, made_by: Mapping[str, Any] | None = None) -> Tokens:
    """Open the tokens in a folder, which must be of `made_by` if that is given.

    Raises `FileNotFoundError` if they are not there or not complete, and `ValueError` if they have
    another format or were made by something else.
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
            raise TypeError(f"its format is {about['format']!r}")
        tokens = _from_about(folder, about)
    except (KeyError, TypeError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} does not describe a cache {FORMAT}: {error!r:.99}") from error
    if made_by is not None and config_hash(made_by) != about["hash"]:
        raise ValueError(
            f"{folder} was made by {about['hash']}, this is {config_hash(made_by)} "
            f"({difference(about['made_by'], plain(made_by))}): give another folder, or delete it"
        )
    return tokens


def _from_about(folder: Path, about: Mapping[str, Any]) -> Tokens:
    files = [shard["file"] for shard in about["shards"]]
    sizes = tuple(shard["images"] for shard in about["shards"])
    n_tokens, d_vit, skipped = about["tokens"], about["d_vit"], tuple(about["skipped"])
    if missing := [file for file in files if not (folder / file).is_file()]:
        raise FileNotFoundError(
            f"{len(missing)} of {len(files)} shards are missing in {folder}, the first is "
            f"{missing[0]}: copy them too, or delete {folder / ABOUT} to collect them again"
        )

    @lru_cache(maxsize=2)  # memory-mapped; what is not read costs nothing
    def read(number: int) -> Tensor:
        path, expected = folder / files[number], (sizes[number], n_tokens, d_vit)
        z = _read_shard(path, "tokens")
        if tuple(z.shape) != expected:
            raise ValueError(
                f"{path} holds tokens {tuple(z.shape)}, {ABOUT} says {expected}: "
                "delete the folder, and collect them again"
            )
        return z

    # cloned, or all shards would stay mapped
    indices = torch.cat([_read_shard(folder / file, "indices").clone() for file in files])
    return Tokens(read, sizes, n_tokens, d_vit, indices, skipped)


def _read_shard(path: Path, name: str) -> Tensor:
    """Return a tensor of a shard, memory-mapped."""
    try:
        with safe_open(path, framework="pt") as file:
            return file.get_tensor(name)
    except (SafetensorError, OSError) as error:
        raise ValueError(
            f"{path} is not a whole shard of tokens ({error}): delete it to collect it again"
        ) from error


def _metadata(path: Path) -> dict[str, str]:
    """Return the metadata of a shard, or nothing if it is missing or cut short."""
    try:
        with safe_open(path, framework="pt") as file:
            return file.metadata() or {}
    except (SafetensorError, OSError):
        return {}


def token_rows(
    sizes: Sequence[int], n_tokens: int, config: TrainConfig, seed: int, start_step: int
) -> Iterator[npt.NDArray[np.int64]]:
    """Yield the sorted numbers of the tokens of each batch of `Tokens.mixed`, endlessly.

    Tokens, `n_tokens` an image, are numbered through shards of `sizes` images.
    """
    if config.batch_tokens < world_size():
        raise ValueError(
            f"a batch of {config.batch_tokens} tokens is too small for {world_size()} processes"
        )
    pools = _pools(n_tokens, config)
    if any(per_image == 0 for _, per_image, _ in pools):
        raise ValueError("there are CLS tokens only: set tokens = 'cls' or cls_share = 1")
    orders = [
        Shuffled([n * per_image for n in sizes], BUFFER, (seed, i))
        for i, (_, per_image, _) in enumerate(pools)
    ]
    for step in count(start_step):
        rows = []
        for (first, per_image, n), order in zip(pools, orders, strict=True):
            image, token = np.divmod(order.take(step * n, n), per_image)
            rows.append(image * n_tokens + first + token)
        # In the order of the file: no matter to the loss, and a disk reads forwards.
        batch = np.sort(np.concatenate(rows))
        yield batch[my_part(len(batch))]


def _pools(n_tokens: int, config: TrainConfig) -> list[tuple[int, int, int]]:
    """Return what a batch is drawn from: (first token, tokens of an image, tokens in a batch)."""
    if config.tokens == "cls":
        return [(0, 1, config.batch_tokens)]
    if config.cls_share < 0:
        return [(0, n_tokens, config.batch_tokens)]
    n_cls = round(config.cls_share * config.batch_tokens)
    pools = [(0, 1, n_cls), (1, n_tokens - 1, config.batch_tokens - n_cls)]
    return [pool for pool in pools if pool[2]]


class Shuffled:
    """Endless passes over 0 … Σ sizes − 1, each in its own random order.

    Shards of these `sizes` are shuffled too, and `buffer` of them are mixed at a time.
    """

    def __init__(self, sizes: Iterable[int], buffer: int, seed: tuple[int, ...]) -> None:
        self.lengths, self.buffer, self.seed = np.asarray(list(sizes)), buffer, seed
        self.first, self.n = np.cumsum(self.lengths) - self.lengths, int(self.lengths.sum())
        self.n_groups = -(-len(self.lengths) // buffer)
        self.order = lru_cache(maxsize=2)(self._order)

    def take(self, start: int, count: int) -> npt.NDArray[np.int64]:
        """Return the numbers at places `start` to `start + count` of the passes."""
        epoch, skip = divmod(start, self.n)
        number, parts = epoch * self.n_groups, []
        while count:
            if skip < (length := self.lengths[self._group(number)].sum()):
                parts.append(self.order(number)[skip : skip + count])
                count -= len(parts[-1])
            skip, number = max(0, skip - length), number + 1
        return np.concatenate(parts)

    def _group(self, number: int) -> npt.NDArray[np.int64]:
        """Return the shards, in order, of group `number`, counted through all passes."""
        epoch, i = divmod(number, self.n_groups)
        shards = np.random.default_rng((*self.seed, 3, epoch)).permutation(len(self.lengths))
        return np.sort(shards[i * self.buffer : (i + 1) * self.buffer])

    def _order(self, number: int) -> npt.NDArray[np.int64]:
        shards = self._group(number)
        rows = np.concatenate([self.first[i] + np.arange(self.lengths[i]) for i in shards])
        return rows[np.random.default_rng((*self.seed, number)).permutation(len(rows))]
