"""Pictures of a spec: their names, what tells them from others, and which of them can be read."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from patchsae_lib.pictures.sources import Files, Pictures, unwrapped
from patchsae_lib.world import TASKS, World

MAX_UNREADABLE = 0.01  # a larger share of the pictures is an error


def name_of(spec: str) -> str:
    """Return the name of the pictures of a spec, as in file names."""
    return Path(spec.partition(":")[2] or spec).name


def title_of(spec: str) -> str:
    """Return what a reader calls the pictures of a spec.

    >>> title_of("world:land"), title_of("folder:/my/photos")
    ('Land cover from above', 'photos')
    """
    kind, _, name = spec.partition(":")
    return TASKS[name].title if kind == "world" and name else name_of(spec)


def in_the_world(pictures: Pictures) -> tuple[World | None, Sequence[int]]:
    """Return the embedded world, if the pictures are from there, and their numbers in it."""
    below, rows = unwrapped(pictures)
    return (below if isinstance(below, World) else None), rows


def pictures_identity(pictures: Pictures, spec: str, split: str) -> dict[str, Any]:
    """Return what tells pictures apart: their spec and number, and a hash of their classes, of the
    first and the last picture, and of the names, sizes and times of the files. (Data that
    torchvision keeps in memory are known by their files.)"""
    kind, _, name = spec.partition(":")
    spec = f"folder:{Path(name).expanduser().resolve()}" if kind == "folder" else spec
    _, images = read_pictures(pictures, [0, len(pictures) - 1], [])
    digest = hashlib.sha256(repr(pictures.class_names).encode())
    below, rows = unwrapped(pictures)
    if isinstance(below, Files):
        digest.update(below.digest.encode())
    if len(rows) < len(below):
        digest.update(repr(list(rows)).encode())
    digest.update(images.numpy().tobytes())
    return {"spec": spec, "split": split, "n": len(pictures), "hash": digest.hexdigest()[:16]}


def read_pictures(
    pictures: Pictures, indices: Sequence[int], skipped: list[int]
) -> tuple[list[int], Tensor]:
    """Read those of `pictures[indices]` that can be read: their indices, and uint8 (b, 3, h, w).

    The indices of the others, which raise `OSError`, are added to `skipped`.
    """
    try:
        return list(indices), pictures.batch(list(indices))
    except OSError:
        pass
    readable, images = [], []
    for i in indices:
        try:
            images.append(pictures.batch([i]))
            readable.append(i)
        except OSError:
            skipped.append(i)
    return readable, torch.cat(images) if images else torch.empty(0)


def require_readable(
    skipped: Sequence[int], n_pictures: int, advice: str = "", allowed: float = MAX_UNREADABLE
) -> None:
    """Raise `ValueError` if a larger share of the pictures than `allowed` could not be read."""
    if len(skipped) > allowed * n_pictures:
        raise ValueError(
            f"{len(skipped)} of {n_pictures} pictures cannot be read, more than {allowed:.0%}; "
            f"the first is number {skipped[0]}. {advice}".strip()
        )
