"""What a bundle says, read back; and a few of its latents to begin with."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from PIL import Image

from patchsae_lib.explorer.bundle import read_index
from patchsae_lib.explorer.drawings import spotlight
from patchsae_lib.explorer.files import array_of, read_shard
from patchsae_lib.explorer.strips import webp_uri
from patchsae_lib.names import NO_NAME

# of each row the latent with the best overlap (IoU) among those that have a name of the first of
# these kinds that any has
KINDS = (
    ("colour",),
    ("part", "class part"),
    ("class", "class part", "class style", "group"),
    ("background",),
    ("word", "sign"),
)
SIDE = 128  # pixels of the four pictures together


class Preset(NamedTuple):
    """A latent to begin with; `picture` is a data URI of four of its reference images."""

    latent: int
    title: str
    note: str
    picture: str


def presets(folder: Path) -> list[Preset]:
    """Choose the latent that finds its concept best, for each of a few kinds of concept, and one
    that fails: without a name, and of all these the one whose reference images are most alike (by
    label entropy; ties: the one active on most pictures)."""
    index = read_index(folder)
    table = properties(folder, index)
    return [_preset(folder, index, latent, table.loc[latent]) for latent in choices(table)]


def choices(table: pd.DataFrame) -> list[int]:
    """Return the numbers of these latents, by the properties of all; no latent comes twice."""
    chosen: list[int] = []
    if not {"kind", "found", "iou"} <= {*table.columns}:
        return chosen
    best_first = table.sort_values("iou", ascending=False, kind="stable").query("found == 1")
    for kinds in KINDS:
        left = best_first.drop(chosen)
        of_kind = (left[left["kind"] == kind] for kind in kinds)
        chosen += next(([int(x.index[0])] for x in of_kind if len(x)), [])
    is_judged = (table["found"] == 0) & table["entropy"].notna() & table["iou"].notna()
    unnamed = table[is_judged].sort_values(["entropy", "n_images"], ascending=[True, False])
    return chosen + unnamed.index[:1].tolist()


def _preset(folder: Path, index: Mapping[str, Any], latent: int, row: Any) -> Preset:
    numbers, masks = examples(folder, index, latent, 4)
    sheet, side = Image.new("RGB", (SIDE, SIDE)), SIDE // 2
    for i, (number, mask) in enumerate(zip(numbers, masks, strict=True)):
        small = np.array(picture(folder, index, number).resize((side, side)))
        levels = torch.from_numpy(mask / 15).square()  # masks hold roots
        lit = spotlight(torch.from_numpy(small).permute(2, 0, 1), levels, 1.0)
        sheet.paste(lit, (i % 2 * side, i // 2 * side))
    title, note = str(row["name"]), f"latent {latent}, IoU {row['iou']:.2f}"
    if title == NO_NAME:
        title, note = f"no name, but looks like “{row['top_class']}”", f"latent {latent}"
    return Preset(latent, title[0].upper() + title[1:], note, webp_uri(sheet))


def properties(folder: Path, index: Mapping[str, Any]) -> pd.DataFrame:
    """Return the properties of all latents: a row each."""
    columns: dict[str, np.ndarray] = {}
    for n, column in enumerate(index["columns"]):
        kind = np.dtype(column["type"]).newbyteorder("<")
        values = array_of(read_shard(folder / f"column-{n}.js")["values"], kind)
        names = np.array([*column.get("names", []), ""])
        columns[column["name"]] = names[values] if "names" in column else values
    return pd.DataFrame(columns, range(index["latents"]))


def examples(
    folder: Path, index: Mapping[str, Any], latent: int, n: int
) -> tuple[list[int], np.ndarray]:
    """Return the numbers of the first `n` example pictures of a latent, or fewer, and its masks on
    them, (pictures, rows, columns) 0..15."""
    file, row = divmod(latent, index["perShard"])
    shard, k = read_shard(folder / f"latents-{file}.js"), sum(n for _, n in index["examples"])
    n = min(n, k)
    images = array_of(shard["images"], "<i4").reshape(-1, k)[row, :n]
    packed = array_of(shard["masks"], "<u1")
    levels = np.stack([packed & 15, packed >> 4], 1).ravel()
    rows, columns = index["grid"]
    start = row * k * rows * columns
    masks = levels[start : start + n * rows * columns].reshape(n, rows, columns)
    return images[images >= 0].tolist(), masks[images >= 0]


def picture(folder: Path, index: Mapping[str, Any], number: int) -> Image.Image:
    """Return an example picture."""
    file, place = divmod(number, index["perFile"])
    uri = read_shard(folder / f"pictures-{file}.js")["pictures"][place]
    return Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))).convert("RGB")
