"""The front page's picture: point at a patch and see its strongest latents."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from patchsae_lib.explorer.bundle import Task, read_index
from patchsae_lib.explorer.files import base64_of, nibbles, read_shard, small, write_shard
from patchsae_lib.explorer.lens import Lens
from patchsae_lib.explorer.strips import webp_uri

STRONGEST = 3  # latents of a patch
EXAMPLES = 3  # pictures of a latent
SIDE = 64  # pixels of these


def write_glimpse(folder: Path, task: Task, lens: Lens) -> None:
    """Write `glimpse.js` into a bundle, of the one of a task's pictures in which the strongest
    latent has a name in most patches (ties: the first).

    It holds `grid`; `picture`, a data URI; `patches` (patches, 3) int16, its strongest latents in
    CLIP, as indices into `latents` (−1: none); for each of these `number`, `name`, `pictures`,
    indices into `pictures`, and `masks` as in `latents-N.js`; and `pictures`, data URIs.
    """
    index = read_index(folder)
    names, found = _column(folder, index, "name"), _column(folder, index, "found")
    pictures = task.pictures.batch(list(task.rows))
    strongest = _strongest(lens, pictures)
    has_name = found[strongest[..., 0].clamp_min(0)] == 1
    chosen = int((has_name & (strongest[..., 0].numpy() >= 0)).sum(1).argmax())
    order = [n for n in strongest[chosen].unique().tolist() if n >= 0]
    shown: dict[int, int] = {}  # the number of a picture in the bundle → here
    latents = [_latent(folder, index, n, str(names[n]), shown) for n in order]
    place = torch.full((index["latents"] + 1,), -1)
    place[order] = torch.arange(len(order))
    (uri,), _ = small(pictures[chosen : chosen + 1])
    content = {
        "grid": index["grid"], "picture": uri,
        "patches": base64_of(place[strongest[chosen]], "<i2"), "latents": latents,
        "pictures": [_small(folder, index, number) for number in shown],
    }  # fmt: skip
    write_shard(folder / "glimpse.js", content)


def _strongest(lens: Lens, pictures: Tensor) -> Tensor:
    """Return the strongest latents (n, patches, 3) of CLIP in each patch, −1 for none."""
    clip, _ = next(iter(lens.models.values()))
    best = []
    with torch.no_grad():
        for z in lens.tokens(pictures)[0]:
            top = lens.sae.encode(z[1 : clip.n_tokens]).topk(STRONGEST)
            best.append(top.indices.masked_fill(top.values <= 0, -1).cpu())
    return torch.stack(best)


def _column(folder: Path, index: Mapping[str, Any], name: str) -> np.ndarray:
    """Return a property of all latents from the bundle; empty words or 0 if it has none."""
    for n, column in enumerate(index["columns"]):
        if column["name"] == name:
            raw = base64.b64decode(read_shard(folder / f"column-{n}.js")["values"])
            values = np.frombuffer(raw, np.dtype(column["type"]).newbyteorder("<"))
            return np.array([*column["names"], ""])[values] if "names" in column else values
    return np.array([""] * index["latents"]) if name == "name" else np.zeros(index["latents"])


def _latent(
    folder: Path, index: Mapping[str, Any], number: int, name: str, shown: dict[int, int]
) -> dict[str, Any]:
    """Return what is shown of a latent, and note its pictures in `shown`."""
    n, row = divmod(number, index["perShard"])
    shard = read_shard(folder / f"latents-{n}.js")
    cells, k = index["grid"][0] * index["grid"][1], sum(n for _, n in index["examples"])
    images = np.frombuffer(base64.b64decode(shard["images"]), "<i4").reshape(-1, k)
    packed = np.frombuffer(base64.b64decode(shard["masks"]), "<u1")
    levels = np.stack([packed & 15, packed >> 4], 1).ravel()
    masks = torch.from_numpy(levels[row * k * cells : (row + 1) * k * cells].reshape(k, cells))
    pictures = [int(p) for p in images[row, :EXAMPLES] if p >= 0]
    places = [shown.setdefault(p, len(shown)) for p in pictures]
    about = {"number": number, "name": name, "pictures": places}
    return about | {"masks": nibbles(masks[: len(places)].float())}


def _small(folder: Path, index: Mapping[str, Any], number: int) -> str:
    """Return a reference picture as a smaller data URI."""
    n, place = divmod(number, index["perFile"])
    uri = read_shard(folder / f"pictures-{n}.js")["pictures"][place]
    picture = Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2])))
    return webp_uri(picture.convert("RGB").resize((SIDE, SIDE)), method=3, quality=72)
