"""What is known of every latent after one pass over pictures (paper section 3.2, eqs. 3-5).

`scan` fills a `LatentTable`. Its size does not depend on the number of pictures, and tables of
different pictures can be merged in any order, so that many processes can share a scan.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save_file
from sklearn.cluster import HDBSCAN
from torch import Tensor
from tqdm import tqdm

from patchsae_lib.activations import MANY, TokenCache, read_pictures
from patchsae_lib.artefacts import atomic_path
from patchsae_lib.clip import SplitCLIP, accelerated
from patchsae_lib.images import Pictures
from patchsae_lib.sae import SAE

TAU = 0.2  # a latent is active in a patch above this, in eqs. 4-5
K = 10  # reference images of a latent
CHUNK = 1024  # tokens encoded at a time: their latents stay in the CPU's cache
SPARSE = 0.02  # of all latents: up to that many active ones are counted one by one


@dataclass
class LatentTable:
    """Counts over pictures (`images` of them with `tokens` tokens in all) for d latents.

    - `n_images`, `n_active` (d,): images and tokens where a latent is active (f > 0).
    - `total` (d,) float64: the sum of its activations.
    - `n_above` (d,): tokens where f > `tau`, its dataset-level activation; `class_above`
      (classes, d): the same by class, its class-level activation (eqs. 4-5).
    - `top_values`, `top_images`, `top_labels` (d, k): its reference images, those with the highest
      image-level activation: the mean over tokens, or with `rank_by="count"` the number of tokens
      above `tau`. Where fewer than k images activate it: 0, −1, −1. Of equals the lower index.
    - `class_images` (classes,): images of a class. Label −1 is none.
    - `skipped`: indices of pictures that could not be read.

    Deviation: a silent latent has mean 0 and no reference images; the authors give NaN and ten
    times image 0.
    """

    n_images: Tensor
    n_active: Tensor
    total: Tensor
    n_above: Tensor
    class_above: Tensor
    class_images: Tensor
    top_values: Tensor
    top_images: Tensor
    top_labels: Tensor
    images: int = 0
    tokens: int = 0
    class_names: tuple[str, ...] = ()
    tau: float = TAU
    rank_by: str = "mean"
    skipped: list[int] = field(default_factory=list)

    @classmethod
    def empty(
        cls,
        d_sae: int,
        class_names: Sequence[str] = (),
        k: int = K,
        tau: float = TAU,
        rank_by: str = "mean",
    ) -> LatentTable:
        """A table of no pictures."""
        if rank_by not in ("mean", "count"):
            raise ValueError(f"rank_by {rank_by!r} is not mean or count")
        if k < 1 or tau < 0:
            raise ValueError(f"k must be 1 or more and tau 0 or more, got {k} and {tau}")
        n = len(class_names)
        count = torch.zeros(d_sae, dtype=torch.long)
        return cls(
            n_images=count,
            n_active=count.clone(),
            total=torch.zeros(d_sae, dtype=torch.double),
            n_above=count.clone(),
            class_above=torch.zeros(n, d_sae, dtype=torch.int32),
            class_images=torch.zeros(n, dtype=torch.long),
            top_values=torch.zeros(d_sae, k),
            top_images=torch.full((d_sae, k), -1),
            top_labels=torch.full((d_sae, k), -1),
            class_names=tuple(class_names),
            tau=tau,
            rank_by=rank_by,
        )

    # --- filling ---

    @torch.no_grad()
    def add(self, sae: SAE, z: Tensor, indices: Tensor, labels: Tensor | None = None) -> None:
        """Count the tokens z (b, tokens, d_vit) of the pictures `indices` (b,), in place.

        `labels` (b,): their classes; without, they count for no class.
        """
        b, t, _ = z.shape
        labels = torch.full((b,), -1) if labels is None else labels.long()
        if len(labels) and int(labels.max()) >= len(self.class_names):
            raise ValueError(
                f"label {int(labels.max())}: the table knows {len(self.class_names)} classes"
            )
        parts: list[tuple[Tensor, Tensor, Tensor]] = []
        for part in z.split(max(1, CHUNK // t)):
            f = sae.encode(part.to(sae.W_enc.device).float())
            parts.append(of_images(f, self.tau))
        sums, active, above = (torch.cat(column) for column in zip(*parts, strict=True))
        self.images += b
        self.tokens += b * t
        self.n_images += (active > 0).sum(0)
        self.n_active += active.sum(0)
        self.total += sums.double().sum(0)
        self.n_above += above.sum(0)
        known = labels >= 0
        self.class_above.index_add_(0, labels[known], above[known].int())
        self.class_images += torch.bincount(labels[known], minlength=len(self.class_images))
        level = sums / t if self.rank_by == "mean" else above.float()
        rows = len(self.top_values), b
        self._rank(level.T, indices.expand(rows), labels.expand(rows))

    def _rank(self, values: Tensor, images: Tensor, labels: Tensor) -> None:
        """Take (d, n) more candidates for reference images."""
        values = torch.cat([self.top_values, values], 1)
        images = torch.cat([self.top_images, images], 1)
        labels = torch.cat([self.top_labels, labels], 1)
        by_index = images.argsort(dim=1)
        order = values.gather(1, by_index).argsort(dim=1, descending=True, stable=True)
        best = by_index.gather(1, order[:, : self.top_values.shape[1]])
        self.top_values = values.gather(1, best)
        silent = self.top_values == 0
        self.top_images = images.gather(1, best).masked_fill(silent, -1)
        self.top_labels = labels.gather(1, best).masked_fill(silent, -1)

    def merge(self, other: LatentTable) -> LatentTable:
        """The table of the pictures of both; `ValueError` if they do not count the same things."""
        for name in ("class_names", "tau", "rank_by"):
            mine, theirs = getattr(self, name), getattr(other, name)
            if mine != theirs:
                raise ValueError(f"tables of different {name} do not merge: {mine}, {theirs}")
        if self.top_values.shape != other.top_values.shape:
            shapes = tuple(self.top_values.shape), tuple(other.top_values.shape)
            raise ValueError(f"tables of different (latents, k) do not merge: {shapes}")
        d, k = self.top_values.shape
        out = LatentTable.empty(d, self.class_names, k, self.tau, self.rank_by)
        for name in ("images", "tokens", *SUMS):
            setattr(out, name, getattr(self, name) + getattr(other, name))
        for table in (self, other):
            out._rank(table.top_values, table.top_images, table.top_labels)
        out.skipped = sorted(self.skipped + other.skipped)
        return out

    # --- reading ---

    @property
    def frequency(self) -> Tensor:
        """(d,) activated frequency, 0..1: the share of images where a latent is active."""
        return self.n_images / max(1, self.images)

    @property
    def mean(self) -> Tensor:
        """(d,) the image-level activation (mean over tokens), on average over the images where it
        is not 0; 0 for a silent latent."""
        per_image = self.tokens / max(1, self.images)
        return self.total / max(1, per_image) / self.n_images.clamp_min(1)

    @property
    def class_per_image(self) -> Tensor:
        """(classes, d) class-level activation of an image: in how many of its tokens f > `tau`, on
        average over the images of a class; 0 for a class without any."""
        return self.class_above / self.class_images.clamp_min(1)[:, None]

    @property
    def token_frequency(self) -> Tensor:
        """(d,) the share of tokens where a latent is active, 0..1."""
        return self.n_active / max(1, self.tokens)

    @property
    def token_mean(self) -> Tensor:
        """(d,) the activation of a latent, on average over the tokens where it is active."""
        return self.total / self.n_active.clamp_min(1)

    @property
    def _weights(self) -> Tensor:
        """(d, k) the share of each reference image in the activation of all of them."""
        values = self.top_values.double()
        complete = ((self.top_images >= 0) & (self.top_labels >= 0)).all(1, keepdim=True)
        return (values / values.sum(1, keepdim=True)).where(complete, torch.nan)

    @property
    def entropy(self) -> Tensor:
        """(d,) entropy (nats) of the reference images' labels, weighted by activation (eq. 3).

        0 where all are of one class; NaN for a latent with fewer than k (labelled) ones.
        """
        same = self.top_labels[:, :, None] == self.top_labels[:, None, :]
        weights = self._weights
        p = (same * weights[:, None, :]).sum(2)  # of the class of each
        return -(weights * p.clamp_min(1e-300).log()).sum(1).clamp_max(0)

    @property
    def label_std(self) -> Tensor:
        """(d,) standard deviation of the reference images' class numbers, weighted like `entropy`.

        The order of classes follows their hierarchy: related classes are a few numbers apart.
        """
        labels, weights = self.top_labels.double(), self._weights
        mean = (weights * labels).sum(1, keepdim=True)
        return (weights * (labels - mean).pow(2)).sum(1).sqrt()

    def frame(self) -> pd.DataFrame:
        """One row a latent, for people and for `.to_csv` and `.to_parquet`."""
        first = self.top_labels[:, 0].tolist()
        return pd.DataFrame(
            {
                "n_images": self.n_images,
                "n_active": self.n_active,
                "frequency": self.frequency,
                "mean": self.mean,
                "token_frequency": self.token_frequency,
                "token_mean": self.token_mean,
                "entropy": self.entropy,
                "label_std": self.label_std,
                "n_above": self.n_above,
                "top_image": self.top_images[:, 0],
                "top_class": [self.class_names[i] if i >= 0 else "" for i in first],
            }
        ).rename_axis("latent")

    # --- keeping ---

    def save(self, path: str | Path) -> None:
        """Write one safetensors file; `class_above` as the non-zero entries of its flat form."""
        tensors = {f.name: getattr(self, f.name) for f in fields(self) if f.name in TENSORS}
        flat = tensors.pop("class_above").flatten()
        at = flat.nonzero()[:, 0]
        tensors |= {"class_above.index": at, "class_above.value": flat[at]}
        about = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in TENSORS}
        with atomic_path(path) as temporary:
            whole = {k: v.contiguous() for k, v in tensors.items()}
            save_file(whole, temporary, {"about": json.dumps(about)})

    @classmethod
    def load(cls, path: str | Path) -> LatentTable:
        """Read what `save` wrote."""
        with safe_open(path, framework="pt") as file:
            about = json.loads(file.metadata()["about"])
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        about["class_names"] = tuple(about["class_names"])
        shape = len(about["class_names"]), len(tensors["total"])
        above = torch.zeros(shape[0] * shape[1], dtype=torch.int32)
        above[tensors.pop("class_above.index")] = tensors.pop("class_above.value")
        return cls(class_above=above.view(shape), **tensors, **about)


def of_images(f: Tensor, tau: float) -> tuple[Tensor, Tensor, Tensor]:
    """Of latents f (images, tokens, d), over the tokens of each image: their sum, and in how many
    they are above 0 and above `tau`; (images, d) each, on the CPU."""
    if f.device.type == "cpu" and f[:1].count_nonzero() < SPARSE * f[:1].numel():
        image, token, latent = f.nonzero(as_tuple=True)
        value, at, n = f[image, token, latent], image * f.shape[2] + latent, len(f) * f.shape[2]
        found = [f.new_zeros(n).index_add_(0, at, value)]
        found += [torch.bincount(x, minlength=n).short() for x in (at, at[value > tau])]
    else:
        # torch counts bytes in 16 bits three times as fast as booleans in 64
        above = ((f > cut).view(torch.uint8).sum(1, dtype=torch.int16) for cut in (0.0, tau))
        found = [f.sum(1), *above]
    sums, active, above_tau = (x.cpu().view(len(f), -1) for x in found)
    return sums, active, above_tau


SUMS = ("n_images", "n_active", "total", "n_above", "class_above", "class_images")
TENSORS = {*SUMS, "top_values", "top_images", "top_labels"}


# --- the pass ----------------------------------------------------------------------------------


@accelerated
def scan(
    clip: SplitCLIP,
    sae: SAE,
    pictures: Pictures,
    indices: Sequence[int] | None = None,
    *,
    labelled: bool = True,
    prompts: bool = False,
    batch: int = 64,
    progress: bool = True,
    **options: Any,
) -> LatentTable:
    """Send pictures (by default all) through the first half of CLIP and `sae`, and count.

    `options`: `k`, `tau` and `rank_by` of a `LatentTable`. A picture that raises `OSError` on
    reading is skipped and listed; `labelled=False` for pictures whose labels mean nothing.

    Deviation: the tokens of an adapted model's prompts are not counted, being no part of a
    picture; `prompts` counts them, as the authors do.

    Raises `ValueError` when more than 1 % of the pictures cannot be read, or there are none.
    """
    chosen = list(range(len(pictures))) if indices is None else [int(i) for i in indices]
    if not chosen:
        raise ValueError("no pictures to scan")
    names = pictures.class_names if labelled else ()
    table = LatentTable.empty(sae.d_sae, names, **options)
    settings = {} if progress else {"disable": True}  # else TQDM_DISABLE decides
    with tqdm(total=len(chosen), desc="latents", unit=" pictures", **settings) as bar:
        for start in range(0, len(chosen), batch):
            some = chosen[start : start + batch]
            read, images = read_pictures(pictures, some, table.skipped)
            if len(table.skipped) > MANY * len(chosen):
                raise ValueError(
                    f"{len(table.skipped)} of {len(chosen)} pictures cannot be read, more than "
                    f"{MANY:.0%}; the first is number {table.skipped[0]}"
                )
            bar.update(len(some))
            if not read:
                continue
            with torch.no_grad():
                z = clip.tokens(clip.preprocess(images))
            labels = torch.tensor([pictures.label(i) for i in read]) if labelled else None
            table.add(sae, z if prompts else z[:, : clip.n_tokens], torch.tensor(read), labels)
    return table


@accelerated
def scan_cache(
    sae: SAE,
    cache: TokenCache,
    labels: Tensor | None = None,
    class_names: Sequence[str] = (),
    batch: int = 64,
    **options: Any,
) -> LatentTable:
    """`scan` of pictures whose tokens are in a cache; `labels` (images,) are its rows' classes."""
    table = LatentTable.empty(sae.d_sae, class_names, **options)
    for rows in torch.arange(len(cache.indices)).split(batch):
        some = None if labels is None else labels[rows]
        table.add(sae, cache.tokens[rows], cache.indices[rows], some)
    return table


@torch.no_grad()
def image_levels(sae: SAE, tokens: Tensor) -> Tensor:
    """Image-level activations (images, d): the mean over tokens (images, tokens, d_vit)."""
    return torch.stack([sae.encode(z.float()).mean(0) for z in tokens])


def examples(
    levels: Tensor, labels: Tensor, shares: Sequence[float] = (0.25, 0.5, 0.75), seed: int = 0
) -> dict[str, Tensor]:
    """Images that tell more of a latent than those that activate it most, from image-level
    activations (images, d): rows of it, −1 where there are none.

    - `quantiles` (d, len(shares)): of the images where it is active, from the most active one on
      down, the one at each share.
    - `random` (d, 3): any three of them.
    - `absent` (d, 3): three where it is not active, the first of the class (by `labels`) that its
      most active image has, if there is one: what a guess has to tell apart.
    """
    n, d = levels.shape
    active = levels > 0
    count, order = active.sum(0), levels.argsort(dim=0, descending=True, stable=True)
    keys = torch.rand(n, d, generator=torch.Generator().manual_seed(seed))
    at = (torch.tensor(shares)[:, None] * count).long().clamp_max(n - 1)
    quantiles = order.gather(0, at).masked_fill(count == 0, -1)

    def any_of(some: Tensor, keys: Tensor, k: int) -> Tensor:
        best = keys.masked_fill(~some, -1).topk(min(k, n), dim=0)
        rows = best.indices.masked_fill(best.values < 0, -1)
        return F.pad(rows, (0, 0, 0, k - len(rows)), value=-1)

    alike = (labels[:, None] == labels[order[0]]) & (labels >= 0)[:, None]
    first = any_of(~active, keys + alike.float(), 1)
    others = ~active & (torch.arange(n)[:, None] != first)
    absent = torch.cat([first, any_of(others, keys, 2)])
    return {
        "quantiles": quantiles.T,
        "random": any_of(active, keys, 3).T,
        "absent": absent.T,
    }


def nearest(W_dec: Tensor, k: int = 8) -> tuple[Tensor, Tensor]:
    """The k latents whose decoder directions (d, d_vit) are nearest to each one's: their numbers
    and cosines, (d, k) each, the nearest first."""
    directions = F.normalize(W_dec.float(), dim=1)
    found = []
    for rows in torch.arange(len(W_dec)).split(CHUNK):
        cosine = directions[rows] @ directions.T
        cosine[torch.arange(len(rows)), rows] = -2  # not itself
        found.append(cosine.topk(min(k, len(W_dec) - 1)))
    return torch.cat([x.indices for x in found]), torch.cat([x.values for x in found])


def monosemanticity(pairs: Iterable[tuple[Tensor, Tensor]]) -> Tensor:
    """How alike the images are that activate a latent: (d,) in −1..1, of Pach et al. (2025).

    `pairs`: image-level activations a (b, d) ≥ 0 and embeddings e (b, e) of some images each. The
    mean cosine of all pairs of images, weighted by a_i a_j; with ê of unit length its sums are

        Σ_{i<j} a_i a_j ê_i·ê_j = (‖Σ a_i ê_i‖² − Σ a_i²) / 2,   likewise for the weights,

    so that one pass is enough. NaN for a latent that fewer than two images activate.
    """
    sums: list[Tensor] = []
    for a, e in pairs:
        a = a.double()
        more = [a.T @ F.normalize(e.double(), dim=1), a.sum(0), a.pow(2).sum(0)]
        sums = [x + y for x, y in zip(sums, more, strict=True)] if sums else more
    if not sums:
        raise ValueError("no images to compare")
    directed, total, squares = sums
    weights = total.pow(2) - squares
    alone = weights <= 1e-12 * total.pow(2)
    return ((directed.pow(2).sum(1) - squares) / weights).masked_fill(alone, torch.nan)


def clusters(points: npt.ArrayLike, least: float = 0.05) -> np.ndarray:
    """The dense groups that points (n, 2) fall into: a number from 0 for each, −1 for none.

    By HDBSCAN (Campello et al. 2013), which asks for no shape and no number of groups and may find
    a single one; a group has at least the share `least` of the points.
    """
    x = np.asarray(points, float)
    size = max(5, int(len(x) * least))
    return HDBSCAN(min_cluster_size=size, allow_single_cluster=True, copy=True).fit(x).labels_
