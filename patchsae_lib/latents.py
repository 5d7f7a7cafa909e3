"""What is known of every latent after one pass over pictures (paper section 3.2, eqs. 3-5).

`scan` fills a `LatentTable`. Its size does not depend on the number of pictures, and tables of
different pictures can be merged in any order, so that many processes can share a scan.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save_file
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from patchsae_lib.artefacts import atomic_path
from patchsae_lib.clip import SplitCLIP
from patchsae_lib.pictures import Pictures
from patchsae_lib.pictures.naming import require_readable
from patchsae_lib.pictures.reading import read_batches
from patchsae_lib.profiles import StatisticsConfig
from patchsae_lib.sae import SAE
from patchsae_lib.sparse import image_counts
from patchsae_lib.tokens import Tokens

BATCH = 64  # pictures at least whose counts are added together
DEFAULTS: StatisticsConfig = StatisticsConfig()


@dataclass
class LatentTable:
    """Counts over pictures (`images` of them with `tokens` tokens in all) for d latents.

    - `n_images`, `n_active` (d,): images and tokens where a latent is active (f > 0).
    - `total` (d,) float64: the sum of its activations.
    - `n_above` (d,): tokens where f ‖W_dec‖₂ > `tau`, its dataset-level activation; `class_above`
      (classes, d): the same by class, its class-level activation (eqs. 4-5).
    - `top_values`, `top_images`, `top_labels` (d, k): its reference images, those with the highest
      image-level activation, the mean over tokens; of equals the lower index first. Where fewer
      than k images activate a latent: 0, −1, −1.
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
    tau: float = DEFAULTS.tau
    skipped: list[int] = field(default_factory=list)

    @classmethod
    def empty(
        cls, d_sae: int, class_names: Sequence[str] = (), config: StatisticsConfig = DEFAULTS
    ) -> LatentTable:
        """Make a table of no pictures; `config` holds `tau` and the number of reference images."""
        n_classes, shape = len(class_names), (d_sae, config.k)
        count = torch.zeros(d_sae, dtype=torch.long)
        return cls(
            n_images=count,
            n_active=count.clone(),
            total=torch.zeros(d_sae, dtype=torch.double),
            n_above=count.clone(),
            class_above=torch.zeros(n_classes, d_sae, dtype=torch.int32),
            class_images=torch.zeros(n_classes, dtype=torch.long),
            top_values=torch.zeros(shape),
            top_images=torch.full(shape, -1),
            top_labels=torch.full(shape, -1),
            class_names=tuple(class_names),
            tau=config.tau,
        )

    def to(self, device: str | torch.device) -> LatentTable:
        """Return the same table with its tensors on a device."""
        return replace(self, **{name: getattr(self, name).to(device) for name in TENSORS})

    @torch.no_grad()
    def add(self, sae: SAE, z: Tensor, indices: Tensor, labels: Tensor | None = None) -> None:
        """Count the tokens z (b, tokens, d_vit) of the pictures `indices` (b,), in place.

        `labels` (b,): their classes; without, they count for no class.
        """
        b, t, _ = z.shape
        labels = torch.full((b,), -1) if labels is None else labels.long().cpu()
        n_classes = len(self.class_names)
        if len(labels) and (largest := int(labels.max())) >= n_classes:
            raise ValueError(f"label {largest}: the table knows {n_classes} classes")
        parts = z.split(sae.images_at_once(t))
        cuts = sae.cuts(self.tau)
        columns = zip(*(image_counts(sae.encode(part), cuts) for part in parts), strict=True)
        device = self.total.device
        sums, active, above = (torch.cat(column).to(device) for column in columns)
        self.images += b
        self.tokens += b * t
        self._count(sums, active, above, labels)
        rows = len(self.top_values), b
        images, labels = (x.to(device).expand(rows) for x in (indices, labels))
        self._rank((sums / t).T, images, labels)

    def _count(self, sums: Tensor, active: Tensor, above: Tensor, labels: Tensor) -> None:
        """Add what images (b, d) hold of each latent; their labels (b,) are on the CPU."""
        self.n_images += (active > 0).sum(0)
        self.n_active += active.sum(0)
        self.total += sums.double().sum(0)
        self.n_above += above.sum(0)
        known = (labels >= 0).nonzero()[:, 0].to(above.device)
        labels = labels.to(above.device)[known]
        self.class_above.index_add_(0, labels, above[known].int())
        self.class_images.index_add_(0, labels, torch.ones_like(labels))

    def _rank(self, values: Tensor, images: Tensor, labels: Tensor) -> None:
        """Consider more candidates (d, n) for reference images."""
        values = torch.cat([self.top_values, values], 1)
        images = torch.cat([self.top_images, images], 1)
        labels = torch.cat([self.top_labels, labels], 1)
        by_index = images.argsort(dim=1)
        order = values.gather(1, by_index).argsort(dim=1, descending=True, stable=True)
        best = by_index.gather(1, order[:, : self.top_values.shape[1]])
        # what is 0 loses against the empty places: they have image −1
        self.top_values, self.top_images = values.gather(1, best), images.gather(1, best)
        self.top_labels = labels.gather(1, best)

    def merge(self, second: LatentTable) -> LatentTable:
        """Return the table of the pictures of both tables.

        Raises `ValueError` if they do not count the same things.
        """
        for name in ("class_names", "tau", "size"):
            values = getattr(self, name), getattr(second, name)
            if values[0] != values[1]:
                raise ValueError(f"tables of different {name} do not merge: {values}")
        d, k = self.size
        merged = LatentTable.empty(d, self.class_names, StatisticsConfig(tau=self.tau, k=k))
        for name in ("images", "tokens", *SUMS):
            setattr(merged, name, getattr(self, name) + getattr(second, name))
        for table in (self, second):
            merged._rank(table.top_values, table.top_images, table.top_labels)
        merged.skipped = sorted(self.skipped + second.skipped)
        return merged

    @property
    def size(self) -> tuple[int, ...]:
        """(latents, reference images of each)."""
        return tuple(self.top_values.shape)

    @property
    def frequency(self) -> Tensor:
        """Activated frequency (d,), 0..1: the share of images where a latent is active."""
        return self.n_images / max(1, self.images)

    @property
    def mean(self) -> Tensor:
        """Mean image-level activation (d,) of the images where it is not 0; 0 for a silent
        latent. Image-level activation is the mean over tokens."""
        per_image = self.tokens / max(1, self.images)
        return self.total / max(1, per_image) / self.n_images.clamp_min(1)

    @property
    def class_per_image(self) -> Tensor:
        """Class-level activation per image (classes, d): the mean number of tokens of an image
        where a latent is above `tau`; 0 for a class without images."""
        return self.class_above / self.class_images.clamp_min(1)[:, None]

    @property
    def token_frequency(self) -> Tensor:
        """The share (d,) of tokens where a latent is active, 0..1."""
        return self.n_active / max(1, self.tokens)

    @property
    def token_mean(self) -> Tensor:
        """Mean activation (d,) of a latent in the tokens where it is active."""
        return self.total / self.n_active.clamp_min(1)

    @property
    def _weights(self) -> Tensor:
        """Each reference image's share (d, k) of the activation of all of them."""
        values = self.top_values.double()
        complete = ((self.top_images >= 0) & (self.top_labels >= 0)).all(1, keepdim=True)
        return (values / values.sum(1, keepdim=True)).where(complete, torch.nan)

    @property
    def entropy(self) -> Tensor:
        """Entropy (d,) in nats of the reference images' labels, weighted by activation (eq. 3).

        0 where all are of one class; NaN for a latent with fewer than k (labelled) images.
        """
        same = self.top_labels[:, :, None] == self.top_labels[:, None, :]
        weights = self._weights
        p = (same * weights[:, None, :]).sum(2)  # of the class of each
        return -(weights * p.clamp_min(1e-300).log()).sum(1).clamp_max(0)

    @property
    def label_std(self) -> Tensor:
        """Standard deviation (d,) of the reference images' labels, weighted like `entropy`: small
        for related classes, whose numbers are close."""
        return self.label_spread(torch.arange(max(1, len(self.class_names))))

    def label_spread(self, numbers: Tensor) -> Tensor:
        """`label_std` (d,) if the classes had these `numbers` (classes,)."""
        labels, weights = numbers.double()[self.top_labels], self._weights
        mean = (weights * labels).sum(1, keepdim=True)
        return (weights * (labels - mean).pow(2)).sum(1).sqrt()

    def frame(self) -> pd.DataFrame:
        """Return one row per latent, for people and for `.to_csv` and `.to_parquet`."""
        frame = pd.DataFrame({name: getattr(self, name) for name in COLUMNS}).rename_axis("latent")
        classes = [self.class_names[i] if i >= 0 else "" for i in self.top_labels[:, 0].tolist()]
        return frame.assign(top_image=self.top_images[:, 0].numpy(), top_class=classes)

    def save(self, path: str | Path) -> None:
        """Write one safetensors file; `class_above` as the non-zero entries of its flat form."""
        tensors = {f.name: getattr(self, f.name) for f in fields(self) if f.name in TENSORS}
        flat = tensors.pop("class_above").flatten()
        at = flat.nonzero()[:, 0]
        tensors |= {"class_above.index": at, "class_above.value": flat[at]}
        about = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in TENSORS}
        with atomic_path(path) as temporary:
            stored = {name: tensor.contiguous() for name, tensor in tensors.items()}
            save_file(stored, temporary, {"about": json.dumps(about)})

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


SUMS = ("n_images", "n_active", "total", "n_above", "class_above", "class_images")
TENSORS = {*SUMS, "top_values", "top_images", "top_labels"}
COLUMNS = (
    "n_images", "n_active", "frequency", "mean", "token_frequency", "token_mean", "entropy",
    "label_std", "n_above",
)  # fmt: skip


def scan(
    clip: SplitCLIP,
    sae: SAE,
    pictures: Pictures,
    indices: Sequence[int] | None = None,
    config: StatisticsConfig = DEFAULTS,
    *,
    prompts: bool = False,
    progress: bool = True,
) -> LatentTable:
    """Send pictures (by default all) through the first half of CLIP and `sae`, and count.

    A picture whose reading raises `OSError` is skipped and listed.

    Deviation: the tokens of an adapted model's prompts are not counted, being no part of a
    picture; `prompts` counts them, as the authors do.

    Raises `ValueError` for no pictures, and if more than 1 % of them cannot be read.
    """
    chosen = list(range(len(pictures))) if indices is None else [int(i) for i in indices]
    if not chosen:
        raise ValueError("no pictures to scan")
    table = LatentTable.empty(sae.d_sae, pictures.class_names, config).to(sae.W_enc.device)
    at_once = max(BATCH, min(clip.at_once, sae.images_at_once(clip.n_tokens)))
    parts = [chosen[start : start + at_once] for start in range(0, len(chosen), at_once)]
    title = "latents" if progress else ""
    with closing(read_batches(pictures, parts, table.skipped, title)) as batches:
        for readable, images in batches:
            require_readable(table.skipped, len(chosen))
            if readable:
                with torch.no_grad():
                    z = clip.tokens(clip.preprocess(images))
                z = z if prompts else z[:, : clip.n_tokens]
                labels = torch.tensor([pictures.label(i) for i in readable])
                table.add(sae, z, torch.tensor(readable), labels)
    return table.to("cpu")


def scan_tokens(
    sae: SAE,
    tokens: Tokens,
    labels: Tensor | None = None,
    class_names: Sequence[str] = (),
    config: StatisticsConfig = DEFAULTS,
) -> LatentTable:
    """Count as `scan` does, from the tokens of pictures; `labels` (images,) are their classes."""
    table = LatentTable.empty(sae.d_sae, class_names, config).to(sae.W_enc.device)
    labels = torch.full((len(tokens),), -1) if labels is None else labels.cpu()
    n = max(BATCH, sae.images_at_once(tokens.n_tokens))
    for part in zip(*(x.split(n) for x in (tokens, tokens.indices, labels)), strict=True):
        table.add(sae, *part)
    return table.to("cpu")


@torch.no_grad()
def image_levels(sae: SAE, tokens: Tokens | Tensor) -> Tensor:
    """Return the image-level activations (images, d), the mean over tokens, on the CPU."""
    parts = tokens.split(sae.images_at_once(tokens.shape[1]))
    return torch.cat([sae.encode(z).mean(1).cpu() for z in parts])


def strongest_in_pairs(levels: Tensor, k: int = 10) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the k strongest latents of images that come in pairs: (2n, k) int64, and which are
    `shared` with the pair's second image, and `exclusive`: (2n, k) bool (Fig. 4).

    `levels` (2n, d) are image-level activations; rows 2i and 2i + 1 are a pair.
    """
    latents = levels.topk(k).indices
    partners = latents.view(-1, 2, k).flip(1).view(-1, k)
    is_shared = (latents[:, :, None] == partners[:, None]).any(2)
    return latents, {"shared": is_shared, "exclusive": ~is_shared}


def mean_beyond(shares: Tensor, inside: Tensor, groups: Mapping[str, Tensor]) -> pd.Series:
    """Return how far latents' share of activity in a region exceeds the region's own: −1..1.

    `shares` (2n, k) of the latents of images in pairs, `inside` (2n, units) bool the region. The
    mean over the latents of each group (2n, k) bool, then over a pair; NaN without any.
    """
    size = inside.float().mean(1)
    means = {k: shares.where(x, torch.nan).nanmean(1) - size for k, x in groups.items()}
    of_pairs = pd.DataFrame({k: x.double().view(-1, 2).nanmean(1) for k, x in means.items()})
    beyond = pd.Series(of_pairs.unstack(), name="beyond")
    return beyond.rename_axis(["latents", "pair"])


def responses(levels: Tensor, changed: Tensor) -> Tensor:
    """Return how far changes of images move each latent, beside another image: (changes, d) ≥ 0.

    r = mean_i |a′_i − a_i| / mean_{i≠j} |a_i − a_j| with the image-level activations a of images,
    `levels` (n, d), and a′ of the same images with one thing changed, `changed` (changes, n, d).
    0: no effect; 1: as large as that of another image. NaN for a latent that is the same in all.
    """
    n = len(levels)
    rank = torch.arange(n, dtype=torch.double, device=levels.device)
    apart = (2 * rank + 1 - n) @ levels.double().sort(0).values  # Σ_{i<j} |a_i − a_j|
    spread = apart / (n * (n - 1) / 2)
    moved = (changed.to(levels.device) - levels).double().abs().mean(1)
    return moved / spread.masked_fill(spread <= 0, torch.nan)


def selectivity(chosen: Tensor, judged: Tensor) -> tuple[Tensor, Tensor]:
    """Return the change that moves each latent most, by the responses `chosen` (changes, d), and
    how many times as far as any other change it moves it, by `judged`, those to other images: (d,)
    int64 and (d,) ≥ 0. NaN for a latent without responses, or with none but 0."""
    change = chosen.nan_to_num(-1).argmax(0)
    own = judged.gather(0, change[None])[0]
    next_most = judged.scatter(0, change[None], -torch.inf).amax(0)
    return change, own / next_most


def monosemanticity(pairs: Iterable[tuple[Tensor, Tensor]]) -> Tensor:
    """Compute how alike the images are that activate a latent: (d,) in −1..1 (Pach et al. 2025).

    The mean cosine of all pairs of images, weighted by a_i a_j, in one pass, since with unit ê
    Σ_{i<j} a_i a_j ê_i·ê_j = (‖Σ a_i ê_i‖² − Σ a_i²) / 2, and likewise for the weights. `pairs`
    yields image-level activations a (b, d) ≥ 0 and embeddings (b, d_embed) of images. NaN for a
    latent that fewer than two images activate.
    """
    sums: list[Tensor] = []
    for a, e in pairs:
        a = a.double()
        more = [a.T @ F.normalize(e.to(a), dim=1), a.sum(0), a.pow(2).sum(0)]
        sums = [x + y for x, y in zip(sums, more, strict=True)] if sums else more
    if not sums:
        raise ValueError("no images to compare")
    directed, total, squares = sums
    weights = total.pow(2) - squares
    alone = weights <= 1e-12 * total.pow(2)
    return ((directed.pow(2).sum(1) - squares) / weights).masked_fill(alone, torch.nan)


def related_classes(
    table: LatentTable, latents: Tensor, n: int = 999, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """Test whether the classes of latents' reference images are related: their numbers are close.

    Returns which `latents` (m,) have a smaller label standard deviation than in 95 % of n random
    numberings of the classes, (m,) bool; and for each of these the share of the latents of which
    that would be said if it were the true one, (n,). Needs (n + 1) · m ≤ 2²⁴, for the quantile."""
    generator = torch.Generator().manual_seed(seed)
    orders = (torch.randperm(len(table.class_names), generator=generator) for _ in range(n))
    numberings = torch.arange(len(table.class_names)), *orders  # bounds treat all alike
    spread = torch.stack([table.label_spread(order)[latents] for order in numberings])
    is_small = spread < spread.quantile(0.05, dim=0)
    return is_small[0], is_small[1:].double().mean(1)


def partners(W_dec: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Find for each latent of an autoencoder a partner in another: its number, and the cosine of
    the two decoder rows, (d,) each, of `W_dec` (d, d_vit) and `second` (d₂ ≥ d, d_vit).

    Partners are one-to-one, with the largest sum of cosines (the Hungarian method). Two latents
    cannot share a partner. Needs d · d₂ · 8 bytes; 3,072 × 3,072 take a second.
    """
    cosine = (F.normalize(W_dec, dim=1) @ F.normalize(second.to(W_dec), dim=1).T).cpu()
    rows, number = map(torch.from_numpy, linear_sum_assignment(-cosine.numpy()))
    return number, cosine[rows, number]


def clusters(points: npt.ArrayLike, least: float = 0.05) -> np.ndarray:
    """Find the dense groups of points (n, 2): the number of each point's group, −1 for none.

    HDBSCAN (Campello et al. 2013) assumes no shape and no number of groups, and may find a single
    one; a group has at least the share `least` of the points.
    """
    from sklearn.cluster import HDBSCAN  # which takes seconds to import

    x = np.asarray(points, float)
    size = max(5, int(len(x) * least))
    return HDBSCAN(min_cluster_size=size, allow_single_cluster=True, copy=True).fit(x).labels_
