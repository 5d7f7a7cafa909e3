"""The front page's picture: point at a patch and see its strongest latents."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from itertools import compress
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from patchsae_lib.explorer.bundle import Task, read_index
from patchsae_lib.explorer.files import base64_of, nibbles, small, write_shard
from patchsae_lib.explorer.lens import Lens
from patchsae_lib.explorer.presets import examples, picture, properties
from patchsae_lib.explorer.strips import webp_uri
from patchsae_lib.pictures.naming import in_the_world
from patchsae_lib.world.truth import CONCEPTS, sparse_truth, spoken

STRONGEST = 3  # latents of a patch
EXAMPLES = 3  # pictures of a latent
SIDE = 64  # pixels of these


def write_glimpse(folder: Path, task: Task, lens: Lens) -> None:
    """Write `glimpse.js` into a bundle, of the one of a task's pictures in which the strongest
    latent's name is right in most patches (ties: the first).

    It holds `grid`; `picture`, a data URI; `begin`, the patch to begin with, in which most
    different names are right (ties: the first name is the one of fewest patches); `patches`
    (patches, 3) int16, its strongest latents in CLIP, as indices into `latents` (−1: none); for
    each of these `number`, `name`, `pictures`, indices into `pictures`, and `masks` as in
    `latents-N.js`; and `pictures`, data URIs.
    """
    index = read_index(folder)
    table = properties(folder, index)
    names = table["name"] if "name" in table else pd.Series("", table.index)
    found = torch.tensor(table["found"].to_numpy() == 1 if "found" in table else 0 * table.index)
    pictures = task.pictures.batch(list(task.rows))
    strongest = _strongest(lens, pictures)
    has_name = found[strongest.clamp_min(0)] & (strongest >= 0)
    right = has_name & _shown(task, strongest, names, index["grid"])
    chosen = int(right[..., 0].sum(1).argmax())
    begin = _first_patch(strongest[chosen], right[chosen], names)
    order = [n for n in strongest[chosen].unique().tolist() if n >= 0]
    shown: dict[int, int] = {}  # the number of a picture in the bundle → here
    latents = [_latent(folder, index, n, str(names[n]), shown) for n in order]
    place = torch.full((index["latents"] + 1,), -1)
    place[order] = torch.arange(len(order))
    (uri,), _ = small(pictures[chosen : chosen + 1])
    drawn = (picture(folder, index, number).resize((SIDE, SIDE)) for number in shown)
    content = {
        "grid": index["grid"], "picture": uri, "begin": begin,
        "patches": base64_of(place[strongest[chosen]], "<i2"), "latents": latents,
        "pictures": [webp_uri(x, method=3, quality=72) for x in drawn],
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


def _shown(task: Task, latents: Tensor, names: pd.Series[str], grid: tuple[int, int]) -> Tensor:
    """Return whether a patch shows what its latents are named by, (n, patches, 3); true for all
    where the truth is not known."""
    world, numbers = in_the_world(task.pictures)
    if world is None:
        return torch.ones_like(latents, dtype=torch.bool)
    rows = [numbers[row] for row in task.rows]
    truth = sparse_truth(world, rows, grid=(grid[0], grid[1])).dense()
    place = {spoken(concept): i for i, concept in enumerate(CONCEPTS)}
    concept = torch.tensor([place.get(name, -1) for name in names])[latents.clamp_min(0)]
    return truth.gather(2, concept.clamp_min(0)) & (concept >= 0)


def _first_patch(latents: Tensor, right: Tensor, names: pd.Series[str]) -> int:
    """Return the patch with most different names that are `right`, (patches, 3)."""
    shown = [names[row].to_list() for row in latents.clamp_min(0).tolist()]
    usual = Counter(words[0] for words in shown)
    counts = [len({*compress(words, ok)}) for words, ok in zip(shown, right.tolist(), strict=True)]
    return max(range(len(shown)), key=lambda i: (counts[i], -usual[shown[i][0]]))


def _latent(
    folder: Path, index: Mapping[str, Any], number: int, name: str, shown: dict[int, int]
) -> dict[str, Any]:
    """Return what is shown of a latent, and note its pictures in `shown`."""
    pictures, masks = examples(folder, index, number, EXAMPLES)
    places = [shown.setdefault(p, len(shown)) for p in pictures]
    about = {"number": number, "name": name, "pictures": places}
    return about | {"masks": nibbles(torch.from_numpy(masks).float())}
