"""The data of the explorer, as files that a page loads one by one when it needs them.

Each file is one line of JavaScript, `patchsaeShard(JSON)`, because pages opened from a disk may
run scripts but not read data. Arrays of numbers are base64 of little-endian values. Version 3 has

- `index.js`: `version`; `grid` (rows, columns); `side` of a picture in pixels; `perShard` latents
  and `perFile` pictures in a file; `latents`, the number of latents; `examples`, pairs of a name
  and how many pictures of a latent bear it; `labels` (pictures,) int16, the classes (−1: none),
  and `classes`, the names; `concepts`, pairs of kind and name for which there is a truth;
  `columns`, the properties of latents: `name`, `type`, and for words `names`; `number`, the type
  of a latent's number in codes; `tasks`: `name`, `title`, `classes`, `pictures` (how many), and
  `models`, the one or two whose latents are included; `counted`, the number of pictures behind
  histograms; `synonyms`, what `patchsae_lib.explorer.synonyms` returns; `effects`: whether there
  are files of them.
- `first.js`: `values` (latents,) int32, the first example picture of each.
- `column-C.js`: `values` (latents,) of column C, in its `type`; for words, indices into `names`.
- `latents-N.js`: `images` (perShard, k) int32, the example pictures (−1: none); `full` (perShard,)
  float32, the highest activation of each latent in any of their patches; `masks` (perShard, k,
  rows × columns) of 4 bits, the lower half of a byte first: round(15·√(activation/full)); `near`
  (perShard, n) int32, the nearest latents, `cosine` of their decoder directions, float32, and
  `nearFirst`, their first example pictures, int32; `classes` (perShard, m) int16, those in which a
  latent is most active (−1: none), and `levels`, its active tokens per picture of each, float32;
  `absent` (perShard, 3) int32, pictures without it; `counts` (perShard, 16) uint16, pictures by
  image-level activation in equal bins from 0 to `most` (perShard,) float32.
- `directions-N.js`: `decoder` (perShard, d_vit) int8, decoder rows divided by their largest entry.
- `pictures-N.js`: `pictures`, perFile of them as data URIs; `truth`, one object per picture:
  number of a concept → the bits of its patches, the lowest first.
- `task-T.js`: `pictures`, `truth` and `labels` int16 of its pictures; `said`: for each model the
  class probabilities (pictures, classes) float32; `groups` (latents,) uint8, the highest of
  `patchsae_lib.remapping.GROUPS` that a latent reaches in any class; `strongest` (latents,)
  int16, the picture in which a latent's activations have the largest sum (−1: in none any).
- `codes-T-P.js`: picture P of task T: one object per model with `full` float, `starts`
  (tokens + 1,) uint32, and for all tokens in order their active `latents` (`number`) and `levels`
  uint8: max(1, round(255·√(activation/full))). The first token is CLS.
- `class-T-C.js`: class C of task T: its strongest `latents` int32; `levels`, for each model their
  active tokens per picture float32; `groups` uint8; if there are curves, `ks`, `n`, how many
  pictures of the class they count, and `shares`: for each model (on and off, ks, classes) uint8,
  255 times the share of pictures predicted as a class.

`effects-N.js`, `glimpse.js` and the files with which a page computes are described in `effects`,
`glimpse` and `live`.
Reference pictures are renumbered, ordered by class; pictures that no latent shows are left out.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
import torch
from filelock import FileLock
from torch import Tensor

from patchsae_lib.artefacts import note
from patchsae_lib.explorer.files import (
    SIDE,
    array_of,
    base64_of,
    nibbles,
    number_type,
    read_shard,
    small,
    write_shard,
)
from patchsae_lib.explorer.synonyms import synonyms
from patchsae_lib.pictures import Pictures, labels_of, world_of
from patchsae_lib.remapping import groups
from patchsae_lib.world.truth import CONCEPTS, patch_truth

VERSION = 3
PER_SHARD, PER_FILE = 64, 4
TOP_CLASSES, STRONGEST = 8, 500
UNFINISHED = ".unfinished"  # marks a folder as a bundle's until index.js does
OF_LATENTS = "latents", "pictures", "column", "directions"
OF_TASKS = "task", "codes", "class", "glimpse", "effects"
OF_LIVE = "live", "weights", "stamps"

Column: TypeAlias = tuple[dict[str, Any], str]  # its entry in `index.js`, and its values encoded


@dataclass(frozen=True)
class Latents:
    """What a bundle shows of d latents.

    `examples`: a name ("highest") → pictures (d, k), −1 for none. `masks` (d, all k, rows,
    columns): activations on the patches of all these pictures. `near` and `cosine` (d, n): as
    returned by `nearest`. `levels` (classes, d): `LatentTable.class_per_image`. `absent` (d, 3):
    pictures that do not activate a latent. `counts` (d, bins) and `most` (d,): `histogram` of
    `counted` pictures. `directions` (d, d_vit): decoder rows.
    """

    examples: Mapping[str, Tensor]
    masks: Tensor
    near: Tensor
    cosine: Tensor
    levels: Tensor
    absent: Tensor
    counts: Tensor
    most: Tensor
    counted: int
    directions: Tensor

    @property
    def images(self) -> Tensor:
        """Return all example pictures side by side, (d, all k)."""
        return torch.cat(list(self.examples.values()), 1)


@dataclass(frozen=True)
class Task:
    """Pictures of a task as seen by one or two models, of which the second is the adapted one.

    `looks`: `Lens.look` of the pictures `rows` of `pictures`. `levels`: for each model the active
    tokens per picture (classes, d). `curves`: for each model (classes, 2, ks, classes), the share
    of a class's pictures predicted as each class with its first k latents on, and with them off;
    `counts`: how many pictures of each class they count.
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
    counts: Sequence[int] = ()

    def grouped(self) -> Tensor:
        """Return `remapping.groups` (classes, d); all 0 without an adapted model."""
        if len(self.models) < 2:
            return torch.zeros_like(self.levels[0], dtype=torch.long)
        return groups(self.levels[0], self.levels[1])

    def about(self) -> dict[str, Any]:
        """Return the entry of this task in `index.js`."""
        names = {"classes": list(self.class_names), "models": list(self.models)}
        return {"name": self.name, "title": self.title, **names, "pictures": len(self.rows)}


# --- latents ------------------------------------------------------------------------------------


def write_bundle(
    folder: str | Path,
    pictures: Pictures,
    latents: Latents,
    columns: pd.DataFrame,
    labelled: bool = True,
) -> Path:
    """Write the data of all latents into `folder`, replacing an older bundle, and return it.

    `columns` has one row per latent: numbers, or words that repeat. Raises `ValueError` for a
    folder that holds anything but a bundle: only files that a bundle consists of are ever deleted.
    """
    folder, encoded = Path(folder), _columns(columns)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_name(f".{folder.name}.lock")):  # of two at once the second waits
        _write(folder, pictures, latents, encoded, labelled)
    note("writes", str(folder / "first.js"))
    return folder


def _write(
    folder: Path,
    pictures: Pictures,
    latents: Latents,
    encoded: list[Column],
    labelled: bool,
) -> None:
    labels = labels_of(pictures) if labelled else torch.full((len(pictures),), -1)
    shown, grid = _shown(latents, labels), list(latents.masks.shape[2:])
    _begin(folder)
    side, concepts = _write_pictures(folder, pictures, shown, grid)
    _write_latents(folder, latents, _renumbered(shown, len(pictures)))
    index: dict[str, Any] = {
        "version": VERSION, "grid": grid, "side": side, "perShard": PER_SHARD, "perFile": PER_FILE,
        "latents": len(latents.masks),
        "examples": [[name, x.shape[1]] for name, x in latents.examples.items()],
        "labels": base64_of(labels[shown], "<i2"),
        "classes": list(pictures.class_names) if labelled else [],
        "concepts": concepts, "columns": _write_columns(folder, encoded),
        "number": number_type(len(latents.masks))[0], "tasks": [], "counted": latents.counted,
        "synonyms": synonyms(concepts), "effects": False,
    }  # fmt: skip
    write_shard(folder / "index.js", index)  # the last file: without it a bundle is not whole
    (folder / UNFINISHED).unlink()


def describe(folder: str | Path, columns: pd.DataFrame) -> None:
    """Replace the columns of the bundle in `folder`. Raises `ValueError` if there is none."""
    folder = Path(folder)
    index, encoded = read_index(folder), _columns(columns)
    if len(columns) != index["latents"]:
        raise ValueError(f"{len(columns)} rows for the {index['latents']} latents of {folder}")
    write_shard(folder / "index.js", index | {"columns": _write_columns(folder, encoded)})


def _shown(latents: Latents, labels: Tensor) -> Tensor:
    """Return the pictures that any latent shows, ordered by class, so that classes share files."""
    shown = torch.cat([latents.images.flatten(), latents.absent.flatten()]).unique()
    shown = shown[shown >= 0]
    return shown[labels[shown].argsort(stable=True)]


def _renumbered(shown: Tensor, n: int) -> Tensor:
    """Return the number of each of n pictures in the bundle, −1 if it is left out.

    The tensor (n + 1,) ends with −1, so that picture −1, which stands for none, stays −1.
    """
    number = torch.full((n + 1,), -1)
    number[shown] = torch.arange(len(shown))
    return number


def _write_pictures(
    folder: Path, pictures: Pictures, shown: Tensor, grid: Sequence[int]
) -> tuple[int, list[list[str]]]:
    """Write the example pictures; return their side in pixels and the concepts they show."""
    side, truth = SIDE, False
    for n, rows in enumerate(shown.split(PER_FILE)):
        content, side = _encoded(pictures, rows.tolist(), grid)
        truth = truth or any(content["truth"])
        write_shard(folder / f"pictures-{n}.js", content)
    return side, [list(concept) for concept in CONCEPTS] if truth else []


def _write_latents(folder: Path, latents: Latents, number: Tensor) -> None:
    """Write the latents; `number` are the numbers of pictures in the bundle."""
    images, near = latents.images, latents.near
    full = latents.masks.flatten(1).amax(1).float()
    strongest = latents.levels.T.topk(min(TOP_CLASSES, len(latents.levels)))
    classes = strongest.indices.masked_fill(strongest.values == 0, -1)
    for n, rows in enumerate(torch.arange(len(images)).split(PER_SHARD)):
        share = latents.masks[rows].float() / full[rows].clamp_min(1e-12)[:, None, None, None]
        content = {
            "images": base64_of(number[images[rows]], "<i4"),
            "full": base64_of(full[rows], "<f4"),
            "masks": nibbles(share.sqrt() * 15),
            "near": base64_of(near[rows], "<i4"),
            "cosine": base64_of(latents.cosine[rows], "<f4"),
            "nearFirst": base64_of(number[images[near[rows], 0]], "<i4"),
            "classes": base64_of(classes[rows], "<i2"),
            "levels": base64_of(strongest.values[rows], "<f4"),
            "absent": base64_of(number[latents.absent[rows]], "<i4"),
            "counts": base64_of(latents.counts[rows], "<u2"),
            "most": base64_of(latents.most[rows], "<f4"),
        }
        write_shard(folder / f"latents-{n}.js", content)
        w = latents.directions[rows].float().cpu()
        w = 127 * w / w.abs().amax(1, keepdim=True).clamp_min(1e-12)
        write_shard(folder / f"directions-{n}.js", {"decoder": base64_of(w.round(), "<i1")})
    write_shard(folder / "first.js", {"values": base64_of(number[images[:, 0]], "<i4")})


def _columns(table: pd.DataFrame) -> list[Column]:
    columns: list[Column] = []
    for name, column in table.items():
        if pd.api.types.is_numeric_dtype(column):
            columns.append(({"name": str(name), "type": "float32"}, base64_of(column, "<f4")))
            continue
        numbers, words = pd.factorize(column)
        kind, code = ("int16", "<i2") if len(words) <= 2**15 else ("int32", "<i4")
        entry = {"name": str(name), "type": kind, "names": [str(word) for word in words]}
        columns.append((entry, base64_of(numbers, code)))
    return columns


def _write_columns(folder: Path, columns: Sequence[Column]) -> list[dict[str, Any]]:
    """Write the values, replacing older ones, and return the entries for `index.js`."""
    delete(folder, ("column",))
    for n, (_, values) in enumerate(columns):
        write_shard(folder / f"column-{n}.js", {"values": values})
    return [entry for entry, _ in columns]


# --- tasks --------------------------------------------------------------------------------------


def write_tasks(folder: str | Path, tasks: Sequence[Task]) -> None:
    """Replace the tasks of the bundle in `folder`. Raises `ValueError` if there is none."""
    folder = Path(folder)
    index = read_index(folder)
    index = {name: value for name, value in index.items() if name != "live"}
    index["effects"] = False
    write_shard(folder / "index.js", index | {"tasks": []})
    delete(folder, OF_TASKS + OF_LIVE)
    for number, task in enumerate(tasks):
        _write_task(folder, number, task, index)
    write_shard(folder / "index.js", index | {"tasks": [task.about() for task in tasks]})
    note("writes", str(folder / "index.js"))


def _write_task(folder: Path, number: int, task: Task, index: Mapping[str, Any]) -> None:
    content, _ = _encoded(task.pictures, task.rows, index["grid"], index["side"])
    content["labels"] = base64_of([task.pictures.label(i) for i in task.rows], "<i2")
    by_model = zip(*(look["said"] for look in task.looks), strict=True)
    content["said"] = [base64_of(np.array(probabilities), "<f4") for probabilities in by_model]
    grouped = task.grouped()
    content["groups"] = base64_of(grouped.amax(0), "<u1")
    content["strongest"] = base64_of(strongest_pictures(task.looks, index["latents"]), "<i2")
    write_shard(folder / f"task-{number}.js", content)
    for i, look in enumerate(task.looks):
        write_shard(folder / f"codes-{number}-{i}.js", {"models": look["models"]})
    for c in range(len(task.class_names)):
        write_shard(folder / f"class-{number}-{c}.js", _class(task, c, grouped[c]))


def strongest_pictures(looks: Sequence[Mapping[str, Any]], d_sae: int) -> np.ndarray:
    """Return the number of the picture with the largest sum of each latent in either model (d,),
    −1 where it is active in none."""
    sums = np.zeros((len(looks) + 1, d_sae))  # the first stands for none
    for row, look in zip(sums[1:], looks, strict=True):
        for model in look["models"]:
            latents = array_of(model["latents"], number_type(d_sae)[1])
            values = model["full"] * (array_of(model["levels"], "<u1") / 255) ** 2
            np.maximum(row, np.bincount(latents, values, d_sae), out=row)
    return sums.argmax(0) - 1


def _class(task: Task, c: int, grouped: Tensor) -> dict[str, Any]:
    """Return the content of `class-T-C.js`; `grouped` (d,) are the groups in class c."""
    levels = torch.stack([x[c] for x in task.levels])
    strongest = levels.amax(0).topk(min(STRONGEST, levels.shape[1]))
    latents = strongest.indices[strongest.values > 0]
    content: dict[str, Any] = {
        "latents": base64_of(latents, "<i4"),
        "levels": [base64_of(x[latents], "<f4") for x in levels],
        "groups": base64_of(grouped[latents], "<u1"),
    }
    if task.curves:
        shares = [base64_of((x[c] * 255).round(), "<u1") for x in task.curves]
        content |= {"ks": list(task.ks), "shares": shares, "n": task.counts[c]}
    return content


# --- pictures -----------------------------------------------------------------------------------


def _encoded(
    pictures: Pictures, rows: Sequence[int], grid: Sequence[int], side: int = SIDE
) -> tuple[dict[str, Any], int]:
    """Return pictures with their truth, and their side in pixels (at most `side`)."""
    truth: list[dict[int, str]] = [{} for _ in rows]
    if world := world_of(pictures):
        drawn = [world.picture(i) for i in rows]  # once, for the pixels and the truth
        batch = torch.from_numpy(np.stack([x.pixels for x in drawn])).permute(0, 3, 1, 2)
        truth = [_bits(patch_truth(x, CONCEPTS, (grid[0], grid[1]))) for x in drawn]
    else:
        batch = pictures.batch(rows)
    uris, side = small(batch, side)
    return {"pictures": uris, "truth": truth}, side


def _bits(truth: np.ndarray) -> dict[int, str]:
    """Return the patches of each concept that occurs in `truth` (patches, concepts) as bits."""
    packed = np.packbits(truth, axis=0, bitorder="little")
    return {int(c): base64_of(packed[:, c], "<u1") for c in np.flatnonzero(truth.any(0))}


# --- folders ------------------------------------------------------------------------------------


def read_index(folder: Path) -> dict[str, Any]:
    """Read `index.js`. Raises `ValueError` if `folder` holds no bundle of this version."""
    index = _any_index(folder)
    if (version := index["version"]) != VERSION:
        raise ValueError(f"{folder} holds a bundle of version {version}, not {VERSION}")
    return index


def _any_index(folder: Path) -> dict[str, Any]:
    """Read `index.js` of any version."""
    try:
        index = read_shard(folder / "index.js")
    except ValueError as error:
        raise ValueError(f"{folder} holds no bundle: {error}") from None
    if not isinstance(index, dict) or "version" not in index:
        raise ValueError(f"{folder} holds no bundle: index.js says no version")
    return index


def _begin(folder: Path) -> None:
    """Delete the bundle in `folder`, of any version, and mark the folder as one being written.

    Raises `ValueError` for a folder that holds files, but neither a bundle nor the mark.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()) and not (folder / UNFINISHED).is_file():
        try:
            _any_index(folder)
        except ValueError as error:
            raise ValueError(f"{error}. Give another folder, or empty this one") from None
    (folder / UNFINISHED).touch()
    for name in ("index.js", "first.js"):
        (folder / name).unlink(missing_ok=True)
    delete(folder, OF_LATENTS + OF_TASKS + OF_LIVE)


def delete(folder: Path, kinds: Sequence[str]) -> None:
    """Delete the files `KIND.js`, `KIND-N.js` and `KIND-N-M.js`, and no others."""
    name = re.compile(rf"({'|'.join(kinds)})(-\d+){{0,2}}\.js")
    for path in folder.iterdir():
        if name.fullmatch(path.name):
            path.unlink()
