"""The data of the explorer as files that a page loads one by one, when it needs them.

Each file is JavaScript of one line, `patchsaeShard(JSON)`, since pages opened from a disk may run
scripts but not read data. Arrays of numbers are base64 of little-endian values. Version 2 has

- `index.js`: `version`; `grid` (rows, columns); `side` of a picture in pixels; `perShard` latents
  and `perFile` pictures in a file; `latents`, how many; `examples`, pairs of a name and how many
  pictures of a latent are shown for it; `labels` (pictures,) int16, their classes (−1: none), and
  `classes`, the names; `concepts`, pairs of kind and name that the truth knows of; `columns`, what
  is known of all latents: `name`, `type`, and for words `names`; `number`, the type that a
  latent's number has in codes; `tasks`: `name`, `title`, `classes`, `pictures` (how many), and
  `models`, the one or two whose latents are there.
- `first.js`: `values` (latents,) int32, the first example picture of each.
- `column-C.js`: `values` (latents,) of column C, in its `type`; of words the number in `names`.
- `latents-N.js`: `images` (perShard, k) int32, the example pictures (−1: none); `full` (perShard,)
  float32, the highest activation of each latent on any of their patches; `masks` (perShard, k,
  rows × columns) of 4 bits, the lower half of a byte first: round(15·√(activation/full)); `near`
  (perShard, n) int32, the nearest latents, `cosine` of their decoder directions, float32, and
  `nearFirst`, their first example pictures, int32;
  `classes` (perShard, m) int16, those in which a latent is most active (−1: none), and `levels`,
  its active tokens a picture there, float32; `absent` (perShard, 3) int32, pictures without it.
- `pictures-N.js`: `pictures`, perFile of them as data URIs; `truth`, one object a picture: number
  of a concept → the bits of its patches, the lowest first.
- `task-T.js`: `pictures`, `truth` and `labels` int16 of its pictures; `said`: for each model the
  probabilities of its classes (pictures, classes) float32; `groups` (latents,) uint8, the
  strongest of `patchsae_lib.remapping.GROUPS` of a latent in any class.
- `codes-T-P.js`: picture P of task T: one object a model with `full` float, `starts` (tokens + 1,)
  uint32, and for all tokens in order their active `latents` (`number`) and `levels` uint8:
  max(1, round(255·√(activation/full))). The first token is CLS.
- `class-T-C.js`: class C of task T: its strongest `latents` int32; `levels`, for each model their
  active tokens a picture float32; `groups` uint8; if there are curves, `ks` and `shares`: for each
  model (on and off, ks, classes) uint8, 255 times the share of pictures given a class.

Reference pictures are numbered anew, by class: those that no latent shows are left out.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from patchsae_lib.artefacts import atomic_path
from patchsae_lib.figures import webp_uri
from patchsae_lib.images import Pictures, labels_of, world_of
from patchsae_lib.remapping import groups
from patchsae_lib.truth import CONCEPTS, patch_truth

VERSION = 2
PER_SHARD, PER_FILE = 64, 4
SIDE = 112  # pixels; larger pictures are made smaller
TOP_CLASSES, STRONGEST = 8, 500
HEAD, TAIL = "patchsaeShard(", ");\n"


@dataclass(frozen=True)
class Latents:
    """What a bundle shows of d latents.

    `examples`: a name ("highest") → pictures (d, k), −1 for none. `masks` (d, all k, rows,
    columns): the activations there. `near` and `cosine` (d, n): `latents.nearest`. `levels`
    (classes, d): a `LatentTable`'s `class_per_image`. `absent` (d, 3): pictures without it.
    """

    examples: Mapping[str, Tensor]
    masks: Tensor
    near: Tensor
    cosine: Tensor
    levels: Tensor
    absent: Tensor


@dataclass(frozen=True)
class Task:
    """Pictures of a task as one or two models see them; the second is the adapted one.

    `looks`: what `Lens.look` says of its pictures, the `rows` of `pictures`. `levels`: for each
    model (classes, d) active tokens a picture. `curves`: for each model (classes, 2, ks, classes),
    the share of a class's pictures that are given each class with its first k latents on and off.
    """

    name: str
    title: str
    class_names: Sequence[str]
    models: Sequence[str]
    pictures: Pictures
    rows: Sequence[int]
    looks: Sequence[Mapping[str, Any]]
    levels: Sequence[Tensor]
    ks: Sequence[int] = ()
    curves: Sequence[Tensor] = ()


def write_bundle(
    folder: str | Path,
    pictures: Pictures,
    latents: Latents,
    columns: pd.DataFrame,
    labelled: bool = True,
) -> Path:
    """Write the data of all latents into `folder`, in place of an older bundle, and return it.

    `columns` has a row a latent: numbers, or words that repeat.
    """
    folder = Path(folder)
    for old in folder.glob("*-*.js"):
        old.unlink()
    for name in ("index.js", "first.js"):
        (folder / name).unlink(missing_ok=True)
    images = torch.cat(list(latents.examples.values()), 1)
    used = torch.cat([images.flatten(), latents.absent.flatten()]).unique()
    used = used[used >= 0]
    labels = labels_of(pictures) if labelled else torch.full((len(pictures),), -1)
    used = used[labels[used].argsort(stable=True)]  # pictures of a class share a file
    anew = torch.full((len(pictures) + 1,), -1)  # the last one is that of no image
    anew[used] = torch.arange(len(used))
    grid = latents.masks.shape[2:]
    side, truth = SIDE, False
    for n, part in enumerate(used.split(PER_FILE)):
        shown, side = _pictures(pictures, part.tolist(), grid)
        truth = truth or any(shown["truth"])
        _write(folder / f"pictures-{n}.js", shown)
    full = latents.masks.flatten(1).amax(1).float()
    strongest = latents.levels.T.topk(min(TOP_CLASSES, len(latents.levels)))
    classes = strongest.indices.masked_fill(strongest.values == 0, -1)
    for n, rows in enumerate(torch.arange(len(images)).split(PER_SHARD)):
        share = latents.masks[rows].float() / full[rows].clamp_min(1e-12)[:, None, None, None]
        shard = {
            "images": _base64(anew[images[rows]], "<i4"),
            "full": _base64(full[rows], "<f4"),
            "masks": nibbles(share.sqrt() * 15),
            "near": _base64(latents.near[rows], "<i4"),
            "cosine": _base64(latents.cosine[rows], "<f4"),
            "nearFirst": _base64(anew[images[latents.near[rows], 0]], "<i4"),
            "classes": _base64(classes[rows], "<i2"),
            "levels": _base64(strongest.values[rows], "<f4"),
            "absent": _base64(anew[latents.absent[rows]], "<i4"),
        }
        _write(folder / f"latents-{n}.js", shard)
    _write(folder / "first.js", {"values": _base64(anew[images[:, 0]], "<i4")})
    index = {
        "version": VERSION,
        "grid": list(grid),
        "side": side,
        "perShard": PER_SHARD,
        "perFile": PER_FILE,
        "latents": len(images),
        "examples": [[name, x.shape[1]] for name, x in latents.examples.items()],
        "labels": _base64(labels[used], "<i2"),
        "classes": list(pictures.class_names) if labelled else [],
        "concepts": [list(c) for c in CONCEPTS] if truth else [],
        "columns": _columns(folder, columns),
        "number": number_type(len(images))[0],
        "tasks": [],
    }
    _write(folder / "index.js", index)  # the last: a folder without it is not whole
    return folder


def describe(folder: str | Path, columns: pd.DataFrame) -> None:
    """Put other `columns` into the bundle in `folder`; all else stays."""
    folder = Path(folder)
    index = read_shard(folder / "index.js")
    if len(columns) != index["latents"]:
        raise ValueError(f"{len(columns)} rows for the {index['latents']} latents of {folder}")
    _write(folder / "index.js", index | {"columns": _columns(folder, columns)})


def write_tasks(folder: str | Path, tasks: Sequence[Task]) -> None:
    """Put `tasks` into the bundle in `folder`, in place of those that are there."""
    folder = Path(folder)
    index = read_shard(folder / "index.js")
    grid, known = index["grid"], []  # type: tuple[int, int], list[dict[str, Any]]
    _write(folder / "index.js", index | {"tasks": []})
    for kind in ("task", "codes", "class"):
        for old in folder.glob(f"{kind}-*.js"):
            old.unlink()
    for number, task in enumerate(tasks):
        shown, _ = _pictures(task.pictures, task.rows, grid, index["side"])
        shown["labels"] = _base64([task.pictures.label(i) for i in task.rows], "<i2")
        said = zip(*(look["said"] for look in task.looks), strict=True)
        shown["said"] = [_base64(np.array(each), "<f4") for each in said]
        of = torch.zeros_like(task.levels[0], dtype=torch.long)
        if len(task.models) == 2:
            of = groups(task.levels[0], task.levels[1])
        shown["groups"] = _base64(of.amax(0), "<u1")
        _write(folder / f"task-{number}.js", shown)
        for i, look in enumerate(task.looks):
            _write(folder / f"codes-{number}-{i}.js", {"models": look["models"]})
        for c in range(len(task.class_names)):
            levels = torch.stack([x[c] for x in task.levels])
            strongest = levels.amax(0).topk(min(STRONGEST, levels.shape[1]))
            latents = strongest.indices[strongest.values > 0]
            content: dict[str, Any] = {
                "latents": _base64(latents, "<i4"),
                "levels": [_base64(x[latents], "<f4") for x in levels],
                "groups": _base64(of[c, latents], "<u1"),
            }
            if task.curves:
                shares = [_base64((x[c] * 255).round(), "<u1") for x in task.curves]
                content |= {"ks": list(task.ks), "shares": shares}
            _write(folder / f"class-{number}-{c}.js", content)
        about: dict[str, Any] = {"name": task.name, "title": task.title}
        about |= {"classes": list(task.class_names), "models": list(task.models)}
        known.append(about | {"pictures": len(task.rows)})
    _write(folder / "index.js", index | {"tasks": known})


def codes(f: Tensor) -> dict[str, Any]:
    """The active latents f (tokens, d) of a picture, as `codes-T-P.js` has them of a model."""
    token, latent = f.nonzero(as_tuple=True)
    value = f[token, latent]
    full = float(value.max()) if len(value) else 0.0
    starts = torch.searchsorted(token, torch.arange(len(f) + 1))
    levels = (255 * (value / max(full, 1e-12)).sqrt()).round().clamp_min(1)
    return {
        "full": full,
        "starts": _base64(starts, "<u4"),
        "latents": _base64(latent, number_type(f.shape[1])[1]),
        "levels": _base64(levels, "<u1"),
    }


def number_type(d: int) -> tuple[str, str]:
    """The smallest type for the number of one of d latents, as the page and as numpy call it."""
    return ("uint16", "<u2") if d <= 2**16 else ("uint32", "<u4")


def read_shard(path: str | Path) -> dict[str, Any]:
    """What a file of a bundle holds. `ValueError` if it is not there, or cut short."""
    try:
        text = Path(path).read_text("utf-8")
        return json.loads(text.removeprefix(HEAD).removesuffix(TAIL))
    except FileNotFoundError:
        raise ValueError(f"{Path(path).name} is not there") from None
    except json.JSONDecodeError:
        raise ValueError(f"{Path(path).name} is not whole") from None


def small(pictures: Tensor, side: int = SIDE) -> tuple[list[str], int]:
    """Pictures (n, 3, h, w) uint8 as data URIs, and their side in pixels, at most `side`."""
    side = min(side, pictures.shape[-1])
    if pictures.shape[2:] != (side, side):
        less = F.interpolate(pictures.float(), (side, side), mode="bilinear", antialias=True)
        pictures = less.round().clamp(0, 255).to(torch.uint8)
    images = (Image.fromarray(x.numpy()) for x in pictures.permute(0, 2, 3, 1).contiguous())
    # method 6 takes three times as long and saves a twentieth
    return [webp_uri(image, method=3, quality=72) for image in images], side


def nibbles(values: Tensor) -> str:
    """Numbers (0..15) rounded to 4 bits, two in a byte, as base64.

    >>> base64.b64decode(nibbles(torch.tensor([1.0, 15.0]))).hex()
    'f1'
    """
    flat = values.round().to(torch.uint8).flatten()
    low, high = F.pad(flat, (0, len(flat) % 2)).view(-1, 2).unbind(1)
    return base64.b64encode((low | high << 4).numpy().tobytes()).decode()


def _pictures(
    pictures: Pictures, rows: Sequence[int], grid: Sequence[int], side: int = SIDE
) -> tuple[dict[str, Any], int]:
    """Some pictures with what is true of them, and their side in pixels."""
    truth: list[dict[int, str]] = [{} for _ in rows]
    if world := world_of(pictures):
        shots = [world.picture(i) for i in rows]  # drawn once, for both
        batch = torch.from_numpy(np.stack([x.pixels for x in shots])).permute(0, 3, 1, 2)
        truth = [_bits(patch_truth(x, CONCEPTS, (grid[0], grid[1]))) for x in shots]
    else:
        batch = pictures.batch(rows)
    uris, side = small(batch, side)
    return {"pictures": uris, "truth": truth}, side


def _bits(truth: np.ndarray) -> dict[int, str]:
    """The concepts that are there in (patches, concepts) bool, and the bits of their patches."""
    packed = np.packbits(truth, axis=0, bitorder="little")
    return {int(c): _base64(packed[:, c], "<u1") for c in np.flatnonzero(truth.any(0))}


def _columns(folder: Path, table: pd.DataFrame) -> list[dict[str, Any]]:
    about: list[dict[str, Any]] = []
    files = []
    for name, column in table.items():
        if pd.api.types.is_numeric_dtype(column):
            about.append({"name": str(name), "type": "float32"})
            files.append(_base64(column, "<f4"))
            continue
        numbers, words = pd.factorize(column)
        if len(words) > 2**15:
            raise ValueError(f"column {name!r} has {len(words):,} words, more than 32,768")
        names = [str(word) for word in words]
        about.append({"name": str(name), "type": "int16", "names": names})
        files.append(_base64(numbers, "<i2"))
    for old in folder.glob("column-*.js"):
        old.unlink()
    for i, values in enumerate(files):
        _write(folder / f"column-{i}.js", {"values": values})
    return about


def _base64(values: Tensor | pd.Series | np.ndarray | Sequence[int], dtype: str) -> str:
    return base64.b64encode(np.asarray(values).astype(dtype).tobytes()).decode()


def _write(path: Path, content: Mapping[str, Any]) -> None:
    text = json.dumps(content, separators=(",", ":")).replace("<", "\\u003c")
    with atomic_path(path) as temporary:
        temporary.write_text(f"{HEAD}{text}{TAIL}", "utf-8")
