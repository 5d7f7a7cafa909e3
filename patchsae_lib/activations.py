"""Residual tokens of many pictures: collected once or streamed, and mixed (paper section 3.1).

A cache file is safetensors: `indices` (images,) int64, which picture each row is, and `tokens`
(images, 1 + n_patches, d_vit), bfloat16 unless asked otherwise. It is read memory-mapped, so it
may be larger than memory; batches then come at the pace of its disk.

Batch number i depends on (seed, i) only, so training goes on at any step without replaying.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import BinaryIO, Protocol

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from tqdm import tqdm

from patchsae_lib.artefacts import atomic_path
from patchsae_lib.clip import accelerated
from patchsae_lib.distributed import my_part, world_size
from patchsae_lib.profiles import TrainConfig

MANY = 0.01  # more unreadable pictures than this share are an error
_DTYPES = {torch.bfloat16: "BF16", torch.float16: "F16", torch.float32: "F32"}


class _Clip(Protocol):  # what is needed of a SplitCLIP
    def preprocess(self, pictures: Tensor, /) -> Tensor: ...
    def tokens(self, images: Tensor, /) -> Tensor: ...


class _Pictures(Protocol):  # what is needed of images.Pictures: how many, and uint8 (b, 3, h, w)
    def __len__(self) -> int: ...
    def batch(self, indices: list[int], /) -> Tensor: ...


@dataclass(frozen=True)
class TokenCache:
    """Tokens (images, 1 + n_patches, d_vit), CLS first, of the pictures `indices` (images,).

    Raises `ValueError` for other shapes and when there is nothing in it.
    """

    tokens: Tensor
    indices: Tensor

    def __post_init__(self) -> None:
        shape = tuple(self.tokens.shape)
        if len(shape) != 3 or tuple(self.indices.shape) != shape[:1]:
            raise ValueError(
                "a TokenCache holds tokens (images, 1 + n_patches, d_vit) and indices (images,), "
                f"got {shape} and {tuple(self.indices.shape)}"
            )
        if self.tokens.numel() == 0:
            raise ValueError(f"no tokens to learn from: {shape}; give at least one picture")


def check_tokens(z: Tensor, what: str) -> None:
    """Raise `ValueError` if a token of z (…, d_vit) is NaN, infinite, or 0 (eq. 2 divides by ‖z‖).

    The message says how many tokens that are and where the first one is.
    """
    parts = z.reshape(-1, z.shape[-1]).split(65_536)  # a whole cache in float32 may not fit
    norms = torch.cat([part.float().norm(dim=1) for part in parts])
    bad = ~torch.isfinite(norms) | (norms == 0)
    if bad.any():
        first = np.unravel_index(int(bad.nonzero()[0]), z.shape[:-1])
        where = " token ".join(str(i) for i in first)
        raise ValueError(
            f"{what}: {int(bad.sum())} of {len(norms)} tokens hold NaN or infinity or are all 0, "
            f"the first at {'image' if z.ndim == 3 else 'token'} {where}. Collect them again from "
            "sound pictures and weights (above 65504 float16 overflows where bfloat16 does not)"
        )


# --- collecting --------------------------------------------------------------------------------


def _collect(
    clip: _Clip, images: _Pictures, indices: list[int], batch: int, dtype: torch.dtype
) -> Iterator[Tensor]:
    for start in range(0, len(indices), batch):
        chosen = indices[start : start + batch]
        yield residual_tokens(clip, images.batch(chosen), dtype, chosen)


@torch.no_grad()
def residual_tokens(
    clip: _Clip, pictures: Tensor, dtype: torch.dtype, indices: Sequence[int]
) -> Tensor:
    """z (b, 1 + n_patches, d_vit), on the CPU, of pictures (b, 3, h, w) uint8.

    Raises `ValueError` for tokens that are no numbers, naming the pictures by `indices` (b,).
    """
    z = clip.tokens(clip.preprocess(pictures)).to("cpu", dtype)
    check_tokens(z, f"pictures {indices[0]} … {indices[-1]}")
    return z


def read_pictures(
    pictures: _Pictures, indices: Sequence[int], skipped: list[int]
) -> tuple[list[int], Tensor]:
    """Those of `pictures[indices]` that can be read, uint8 (b, 3, h, w), and their indices.

    The others, whose reading raises `OSError`, are added to `skipped`.
    """
    try:
        return list(indices), pictures.batch(list(indices))
    except OSError:
        pass
    good, images = [], []
    for i in indices:
        try:
            images.append(pictures.batch([i]))
            good.append(i)
        except OSError:
            skipped.append(i)
    return good, torch.cat(images) if images else torch.empty(0)


@accelerated
def collect_tokens(
    clip: _Clip,
    images: _Pictures,
    indices: Sequence[int],
    path: str | Path | None = None,
    batch: int = 32,
    dtype: torch.dtype = torch.bfloat16,
    progress: bool = True,
) -> TokenCache:
    """The residual tokens of `images[indices]`: in memory or, given `path`, in a file.

    A file that exists is used as it is if it is of the same indices and `clip` gives the same
    tokens for the first and the last of them; of another CLIP, block or set of pictures it is
    collected again, with a warning.

    Raises `ValueError` for no or unknown indices, NaN in the tokens, and a path whose file is no
    token cache.
    """
    chosen = [int(i) for i in indices]
    if not chosen or min(chosen) < 0 or max(chosen) >= len(images):
        given = f"{min(chosen)} … {max(chosen)}" if chosen else "none"
        raise ValueError(f"indices: one or more of 0 … {len(images) - 1} expected, got {given}")
    if path is not None and Path(path).exists():
        cache = open_cache(path)
        if _fits(cache, clip, images, chosen):
            return cache
        warnings.warn(f"{path} is of another CLIP, block or set: collecting again", stacklevel=2)
    parts = tqdm(
        _collect(clip, images, chosen, batch, dtype),
        total=-(-len(chosen) // batch),
        desc=f"tokens of {len(chosen)} pictures",
        **({} if progress else {"disable": True}),  # else TQDM_DISABLE decides
    )
    if path is None:
        return TokenCache(torch.cat(list(parts)), torch.tensor(chosen))
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        _write(file, parts, chosen, dtype)
    return open_cache(path)


def _write(file: BinaryIO, parts: Iterator[Tensor], chosen: list[int], dtype: torch.dtype) -> None:
    """A safetensors file, part by part: its own `save_file` would need all of it in memory."""
    indices = torch.tensor(chosen).numpy().tobytes()
    for n, part in enumerate(parts):
        if n == 0:
            shape = [len(chosen), *part.shape[1:]]
            end = len(indices) + part[0].numel() * part.element_size() * len(chosen)
            entries = {
                "indices": ("I64", [len(chosen)], [0, len(indices)]),
                "tokens": (_DTYPES[dtype], shape, [len(indices), end]),
            }
            header = json.dumps(
                {
                    name: dict(zip(("dtype", "shape", "data_offsets"), entry, strict=True))
                    for name, entry in entries.items()
                }
            ).encode()
            header += b" " * (-len(header) % 8)  # the data begin at a multiple of 8
            file.write(len(header).to_bytes(8, "little") + header + indices)
        file.write(part.contiguous().view(torch.uint8).numpy().data)


def open_cache(path: str | Path) -> TokenCache:
    """The memory-mapped cache at `path`; `ValueError` if there is none or it is not whole."""
    try:
        with safe_open(path, framework="pt") as file:
            return TokenCache(file.get_tensor("tokens"), file.get_tensor("indices"))
    except (SafetensorError, OSError) as error:
        raise ValueError(
            f"{path} is not a token cache ({error}): delete it, and it is collected again"
        ) from error


def _fits(cache: TokenCache, clip: _Clip, images: _Pictures, chosen: list[int]) -> bool:
    if cache.indices.tolist() != chosen:
        return False
    kept = cache.tokens[[0, -1]].float()
    (again,) = _collect(clip, images, [chosen[0], chosen[-1]], 2, torch.float32)
    return kept.shape == again.shape and bool((kept - again).norm() <= 0.01 * again.norm())


# --- batches -----------------------------------------------------------------------------------


def _shuffled(
    sizes: Sequence[int], buffer: int, *seed: int
) -> Callable[[int, int], npt.NDArray[np.int64]]:
    """`take(start, count)`: endless passes over 0 … Σ sizes − 1, each in its own order.

    Of the stretches of these `sizes` (shards), shuffled too, `buffer` are mixed at a time.
    """
    lengths = np.asarray(sizes)
    first, n = np.cumsum(lengths) - lengths, int(lengths.sum())
    n_groups = -(-len(lengths) // buffer)

    @lru_cache(maxsize=2)
    def shards(epoch: int) -> npt.NDArray[np.int64]:
        return np.random.default_rng((*seed, 3, epoch)).permutation(len(lengths))

    def group(number: int) -> npt.NDArray[np.int64]:  # counted over all passes
        epoch, i = divmod(number, n_groups)
        return shards(epoch)[i * buffer : (i + 1) * buffer]

    @lru_cache(maxsize=2)
    def order(number: int) -> npt.NDArray[np.int64]:
        rows = np.concatenate([first[i] + np.arange(lengths[i]) for i in group(number)])
        return rows[np.random.default_rng((*seed, number)).permutation(len(rows))]

    def take(start: int, count: int) -> npt.NDArray[np.int64]:
        epoch, skip = divmod(start, n)
        number, parts = epoch * n_groups, []
        while count:
            if skip < (length := lengths[group(number)].sum()):
                parts.append(order(number)[skip : skip + count])
                count -= len(parts[-1])
            skip, number = max(0, skip - length), number + 1
        return np.concatenate(parts)

    return take


def _pools(n_tokens: int, config: TrainConfig) -> list[tuple[int, int, int]]:
    """(first token, tokens of an image, tokens in a batch) of what a batch is drawn from."""
    if config.tokens == "cls":
        return [(0, 1, config.batch_tokens)]
    if config.cls_share < 0:
        return [(0, n_tokens, config.batch_tokens)]
    n_cls = round(config.cls_share * config.batch_tokens)
    pools = [(0, 1, n_cls), (1, n_tokens - 1, config.batch_tokens - n_cls)]
    return [pool for pool in pools if pool[2]]


def token_rows(
    sizes: Sequence[int],
    n_tokens: int,
    config: TrainConfig,
    seed: int,
    start_step: int = 0,
    buffer: int = 1,
) -> Iterator[npt.NDArray[np.int64]]:
    """Which tokens make a batch, endlessly, from number `start_step` on, as `token_batches` says.

    Sorted numbers of tokens, `n_tokens` an image, counted through shards of `sizes` images, of
    which `buffer` are mixed at a time. Of several processes each gets its part of the batch.
    """
    if config.batch_tokens < world_size():
        raise ValueError(
            f"a batch of {config.batch_tokens} tokens is too small for {world_size()} processes"
        )
    pools = _pools(n_tokens, config)
    if any(per_image == 0 for _, per_image, _ in pools):
        raise ValueError("the cache has CLS tokens only: set tokens = 'cls' or cls_share = 1")
    takes = [
        _shuffled([n * per_image for n in sizes], buffer, seed, i)
        for i, (_, per_image, _) in enumerate(pools)
    ]
    step = start_step
    while True:
        rows = []
        for (first, per_image, count), take in zip(pools, takes, strict=True):
            image, token = np.divmod(take(step * count, count), per_image)
            rows.append(image * n_tokens + first + token)
        # In the order of the file: no matter to the loss, and a disk reads forwards.
        batch = np.sort(np.concatenate(rows))
        yield batch[my_part(len(batch))]
        step += 1


def token_batches(
    cache: TokenCache, config: TrainConfig, seed: int, start_step: int = 0
) -> Iterator[Tensor]:
    """Endless batches z (batch_tokens, d_vit) float32, from number `start_step` on.

    Tokens of all images are mixed and none comes twice before all of its kind have come once.
    `cls_share` of a batch, rounded to whole tokens, are CLS tokens; if it is negative, as many as
    come. With `tokens = "cls"` all are: the first token of each image. Of several processes each
    gets its part of a batch.
    Deviation: the authors' class-token option takes the first image of a batch instead.

    Raises `ValueError` if patches are asked for and the cache has none.
    """
    n_images, n_tokens, d_vit = cache.tokens.shape
    flat = cache.tokens.reshape(-1, d_vit)
    for rows in token_rows([n_images], n_tokens, config, seed, start_step):
        yield flat[torch.from_numpy(rows)].float()


def stream_batches(
    clip: _Clip,
    images: _Pictures,
    indices: Sequence[int],
    config: TrainConfig,
    seed: int,
    start_step: int = 0,
    buffer: int = 1024,
) -> Iterator[Tensor]:
    """Like `token_batches`, where no cache would fit: tokens are mixed `buffer` images at a time.

    What remains of a buffer after its last whole batch is left out. To give it to `train`, fix all
    but `start_step`: `lambda start: stream_batches(clip, images, indices, config, seed, start)`.

    Raises `ValueError` for a buffer that is smaller than a batch.
    """
    buffer = min(buffer, len(indices))
    probe = collect_tokens(clip, images, indices[:1], progress=False)
    n_tokens = 1 if config.tokens == "cls" else probe.tokens.shape[1]
    n_batches = buffer * n_tokens // config.batch_tokens
    if n_batches == 0:
        raise ValueError(
            f"{buffer} images have {buffer * n_tokens} tokens, fewer than a batch of "
            f"{config.batch_tokens}: give a larger buffer (or more images)"
        )
    take = _shuffled([len(indices)], 1, seed, 2)
    step = start_step
    while True:
        number, first = divmod(step, n_batches)
        chosen = [int(indices[i]) for i in take(number * buffer, buffer)]
        cache = collect_tokens(clip, images, chosen, progress=False)
        inner = int(np.random.SeedSequence((seed, number)).generate_state(1)[0])
        yield from islice(token_batches(cache, config, inner, first), n_batches - first)
        step += n_batches - first
