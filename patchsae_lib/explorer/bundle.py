"""The data of the explorer as files that a page loads one by one, when it needs them.

Each file is JavaScript of one line, `patchsaeShard(JSON)`, since pages opened from a disk may run
scripts but not read data. Arrays of numbers are base64 of little-endian values. Version 1 has

- `index.js`: `version`; `grid` (rows, columns); `side` of a picture in pixels; `perShard` latents
  and `perSheet` pictures in a file; `k` reference images of a latent; `latents`, how many; `top`
  (latents,) int32, the first reference image of each; `labels` (pictures,) int16, their classes
  (−1: none), and `classes`, the names; `columns`, what is known of the latents: each float32
  (latents,), or `names` and the int16 `codes` (latents,) of them.
- `latents-N.js`: `images` (perShard, k) int32, the reference images (−1: none); `full` (perShard,)
  float32, the highest activation of each latent on any of their patches; `masks` (perShard, k,
  rows × columns) of 4 bits, the lower half of a byte first: round(15·√(activation/full)).
- `pictures-N.js`: `sheet`, a picture of perSheet pictures, 16 in a row, as a data URI.

Pictures are numbered anew: those that are nobody's reference are left out.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
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
from patchsae_lib.images import Pictures

VERSION = 1
PER_SHARD, PER_SHEET, ROW = 64, 256, 16
SIDE = 112  # pixels; larger pictures are made smaller
HEAD, TAIL = "patchsaeShard(", ");\n"


def write_bundle(
    folder: str | Path,
    pictures: Pictures,
    images: Tensor,
    masks: Tensor,
    columns: pd.DataFrame,
    labelled: bool = True,
) -> Path:
    """Write the data of all latents into `folder`, in place of an older bundle, and return it.

    `images` (d, k) are their reference images among `pictures` (−1: none), `masks` (d, k, rows,
    columns) their activations there. `columns` has a row a latent: numbers, or words that repeat.
    """
    folder = Path(folder)
    for name in ("index.js", "latents-*.js", "pictures-*.js"):
        for old in folder.glob(name):
            old.unlink()
    used = images[images >= 0].unique()
    anew = torch.full((len(pictures) + 1,), -1)  # the last one is that of no image
    anew[used] = torch.arange(len(used))
    numbers = anew[images]
    side = SIDE
    for n, part in enumerate(used.split(PER_SHEET)):
        sheet, side = contact_sheet(pictures.batch(part.tolist()))
        # method 6 takes three times as long and saves a twentieth
        _write(folder / f"pictures-{n}.js", {"sheet": webp_uri(sheet, method=3)})
    full = masks.flatten(1).amax(1).float()
    for n, rows in enumerate(torch.arange(len(images)).split(PER_SHARD)):
        share = masks[rows].float() / full[rows].clamp_min(1e-12)[:, None, None, None]
        shard = {"images": _base64(numbers[rows], "<i4"), "full": _base64(full[rows], "<f4")}
        _write(folder / f"latents-{n}.js", shard | {"masks": nibbles(share.sqrt() * 15)})
    labels = [pictures.label(i) if labelled else -1 for i in used.tolist()]
    index = {
        "version": VERSION,
        "grid": list(masks.shape[2:]),
        "side": side,
        "perShard": PER_SHARD,
        "perSheet": PER_SHEET,
        "k": images.shape[1],
        "latents": len(images),
        "top": _base64(numbers[:, 0], "<i4"),
        "labels": _base64(labels, "<i2"),
        "classes": list(pictures.class_names) if labelled else [],
        "columns": _columns(columns),
    }
    _write(folder / "index.js", index)  # the last: a folder without it is not whole
    return folder


def describe(folder: str | Path, columns: pd.DataFrame) -> None:
    """Put other `columns` into the bundle in `folder`; all else stays."""
    path = Path(folder) / "index.js"
    index = read_shard(path) | {"columns": _columns(columns)}
    if len(columns) != index["latents"]:
        raise ValueError(f"{len(columns)} rows for the {index['latents']} latents of {folder}")
    _write(path, index)


def read_shard(path: str | Path) -> dict[str, Any]:
    """What a file of a bundle holds."""
    text = Path(path).read_text("utf-8")
    return json.loads(text.removeprefix(HEAD).removesuffix(TAIL))


def contact_sheet(pictures: Tensor) -> tuple[Image.Image, int]:
    """Pictures (n, 3, h, w) uint8 as one, `ROW` in a row, and the side of each in pixels."""
    side = min(SIDE, pictures.shape[-1])
    if pictures.shape[2:] != (side, side):
        small = F.interpolate(pictures.float(), (side, side), mode="bilinear", antialias=True)
        pictures = small.round().clamp(0, 255).to(torch.uint8)
    missing = -len(pictures) % ROW
    whole = F.pad(pictures, (0, 0, 0, 0, 0, 0, 0, missing))
    grid = whole.unflatten(0, (-1, ROW)).permute(0, 3, 1, 4, 2)  # rows, h, ROW, w, 3
    return Image.fromarray(grid.reshape(-1, ROW * side, 3).numpy()), side


def nibbles(values: Tensor) -> str:
    """Numbers (0..15, an even count of them) rounded to 4 bits, two in a byte, as base64.

    >>> base64.b64decode(nibbles(torch.tensor([1.0, 15.0]))).hex()
    'f1'
    """
    low, high = values.round().to(torch.uint8).reshape(-1, 2).unbind(1)
    return base64.b64encode((low | high << 4).numpy().tobytes()).decode()


def _columns(table: pd.DataFrame) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for name, column in table.items():
        if pd.api.types.is_numeric_dtype(column):
            out[str(name)] = _base64(column, "<f4")
        else:
            codes, words = pd.factorize(column)
            if len(words) > 2**15:
                raise ValueError(f"column {name!r} has {len(words):,} words, more than 32,768")
            out[str(name)] = {"names": [str(w) for w in words], "codes": _base64(codes, "<i2")}
    return out


def _base64(values: Tensor | pd.Series | np.ndarray | Sequence[int], dtype: str) -> str:
    return base64.b64encode(np.asarray(values).astype(dtype).tobytes()).decode()


def _write(path: Path, content: dict[str, Any]) -> None:
    text = json.dumps(content, separators=(",", ":")).replace("<", "\\u003c")
    with atomic_path(path) as temporary:
        temporary.write_text(f"{HEAD}{text}{TAIL}", "utf-8")
