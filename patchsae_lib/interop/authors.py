"""The statistics that the paper's authors released: their unpacked folder, as tables of ours.

In `out/feature_data/<run>/<model>/<data set>/`, for d latents, each a table (`read_table`):

- `max_activating_image_values.pt`, `…_indices.pt` and `…_label_indices.pt`, (d, k)
- `sae_sparsity.pt`, (d,): the images where a latent is active, their number or their share
- `sae_mean_acts.pt`, (d,): of its image-level activations the sum, or the mean over those images
- `cls_sae_cnt.npy`, (classes, d) or transposed: tokens above τ = 0.2 in the images of a class

Accuracy under masks is in `metrics.csv`, anywhere in `out/` or `eval_outputs/` (`read_metrics`).
`load_sae` reads `data/sae_weight/<run>/*.pt`, `load_prompts`
`data/clip/maple/<data set>/model.pth.tar-N`. Nothing in a file is run. What is not in the files is
absent in the tables: NaN, or no classes.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import open_clip
import pandas as pd
import torch
from pandas.api.types import is_numeric_dtype
from torch import Tensor

from patchsae_lib.artefacts import atomic_path
from patchsae_lib.interop.files import one_line, read_by_content
from patchsae_lib.interop.pickles import OnlyTensors, unpickle
from patchsae_lib.latents import LatentTable
from patchsae_lib.pictures.listing import readable

VALUES, IMAGES, LABELS = (
    f"max_activating_image_{x}.pt" for x in ("values", "indices", "label_indices")
)
ACTIVE, STRENGTH, COUNTS = "sae_sparsity.pt", "sae_mean_acts.pt", "cls_sae_cnt.npy"
NAMES = (VALUES, IMAGES, LABELS, ACTIVE, STRENGTH, COUNTS)
IMAGENET = ("imagenet", "imagenet-sketch")  # data sets with the labels of ImageNet
# Of a metrics.csv without names for its rows, by their number: those of the authors' script.
ROWS = {
    2 * len(ks) + 1: ["no_sae", *(f"{mask}_{k}" for k in ks for mask in ("on", "off"))]
    for ks in ((1, 2, 5, 10, 50, 100, 500, 1000, 2000, 49_152), (1, 10, 100, 1000, 49_152))
}
CLEAR = 0.9  # of the active latents must agree on what sae_mean_acts holds


@dataclass(frozen=True)
class AuthorsFiles:
    """What is in the folder: by (run, model, data set), by place, and in order."""

    tables: Mapping[tuple[str, str, str], Path]
    metrics: Mapping[str, Path]
    autoencoders: Sequence[Path]
    prompts: Sequence[Path]


@dataclass
class AuthorsTable(LatentTable):
    """A `LatentTable` of their files, with `about`: what each file gave, by name.

    `frequency` and `mean` are theirs, `shares` and `means` (d,). Where they stored numbers of
    images, and not of how many, that is `n_images`, and `frequency` is NaN; else the reverse.
    """

    shares: Tensor = field(default_factory=lambda: torch.zeros(0))
    means: Tensor = field(default_factory=lambda: torch.zeros(0))
    about: dict[str, str] = field(default_factory=dict)

    @property
    def frequency(self) -> Tensor:
        """Share (d,) of the images where a latent is active, 0..1."""
        return self.shares

    @property
    def mean(self) -> Tensor:
        """Mean image-level activation (d,) of those images; 0 for a silent latent."""
        return self.means


def find_files(folder: str | Path) -> AuthorsFiles:
    """List what is in the folder in which the archives were unpacked; it may be `out` itself.

    Raises `FileNotFoundError` where there are no statistics.
    """
    folder = Path(folder).expanduser()
    out = folder if (folder / "feature_data").is_dir() else folder / "out"
    beside = out.parent if out.name == "out" else out
    start = out / "feature_data"
    places = [p for p in sorted(start.glob("*/*/*")) if any((p / x).is_file() for x in NAMES)]
    if not places:
        raise FileNotFoundError(
            f"{folder} has no statistics in out/feature_data/<run>/<model>/<data set>/: "
            "unpack the authors' out.zip there"
        )
    metrics = [*out.glob("**/metrics*.csv"), *beside.glob("eval_outputs/**/metrics*.csv")]
    data = beside / "data" if (beside / "data").is_dir() else beside
    return AuthorsFiles(
        {cast(Any, path.relative_to(start).parts): path for path in places},
        {str(path.parent.relative_to(beside)): path for path in sorted({*metrics})},
        sorted(data.glob("sae_weight/*/*.pt")),
        sorted(data.glob("clip/maple/*/model.pth.tar*")),
    )


def read_table(folder: str | Path, class_names: Sequence[str] = ()) -> AuthorsTable:
    """Read the statistics in the folder of one data set, exactly; `about` says what they are.

    Classes are called `class_names`; without, as open_clip calls ImageNet's, or by number. A place
    of a latent without an image (value 0; index 0, or −1) has index and label −1, as in ours.

    Raises `FileNotFoundError` if reference images are there in part, and `ValueError` for files
    that are damaged, of different sizes, or not what they should be.
    """
    folder = Path(folder)
    kept = {name: _read(folder / name) for name in NAMES[:5] if (folder / name).is_file()}
    if missing := sorted({VALUES, IMAGES} - kept.keys()) if {*kept} & {*NAMES[:3]} else []:
        raise FileNotFoundError(f"{folder / missing[0]} is missing: unpack out.zip again")
    about = dict.fromkeys(NAMES, "not there")
    sizes = {len(x) for x in kept.values()} or {0}
    if len(sizes) > 1:
        raise ValueError(f"{folder}: files of autoencoders of {sorted(sizes)} latents: which?")
    above = _counts(folder, max(sizes), about)
    d = above.shape[1]
    top = _references(folder, kept, d, about)
    numbers, shares, means = _rates(folder, kept, top[0].amax(1), about)
    n, n_labels = len(above), int(top[2].max()) + 1
    names = tuple(class_names) or _class_names(folder.name, n, n_labels)
    if n_labels > len(names) or n not in (0, len(names)):
        raise ValueError(
            f"{folder}: counts of {n} classes, labels of {n_labels}, {len(names)} names: "
            "give the names of all classes"
        )
    absent = torch.full((d,), torch.nan)
    return AuthorsTable(
        numbers, absent, absent.double(), above.sum(0) if len(above) else absent, above,
        torch.full((len(names),), torch.nan), *top,
        images=cast(int, math.nan), tokens=cast(int, math.nan),  # 0 would be a number
        class_names=names, tau=0.2, shares=shares, means=means, about=about,
    )  # fmt: skip


def _read(path: Path) -> Tensor:
    """Read one tensor, of finite numbers but for NaN in the means of silent latents."""
    read = partial(unpickle, unpickler=OnlyTensors, owner="the authors' statistics")
    readers: Any = {"torch": read, "safetensors": read}  # the latter says that it is no zip
    tensor = read_by_content(path, readers, "a tensor of torch.save")
    n_axes = 2 if path.name in NAMES[:3] else 1
    if not isinstance(tensor, Tensor) or tensor.ndim != n_axes or not tensor.numel():
        shape = tuple(tensor.shape) if isinstance(tensor, Tensor) else type(tensor).__name__
        raise ValueError(f"{path} holds {shape}, expected a tensor of {n_axes} axes")
    tensor, least = tensor.detach(), -1 if path.name in (IMAGES, LABELS) else 0
    wrong = ~(tensor >= least) | tensor.isinf()
    if (wrong & ~tensor.isnan() if path.name == STRENGTH else wrong).any():
        raise ValueError(f"{path} holds numbers that are not finite or below {least}")
    if least < 0 and (tensor != tensor.round()).any():
        raise ValueError(f"{path} holds fractions, expected whole numbers")
    return tensor


def _counts(folder: Path, d: int, about: dict[str, str]) -> Tensor:
    """Read class-level activations (classes, d) as int32, a few classes at a time; none if there
    is no file. Without other files (d = 0) the longer axis is that of latents."""
    path = folder / COUNTS
    if not path.is_file():
        return torch.zeros(0, d, dtype=torch.int32)
    try:
        stored = np.load(path, mmap_mode="r", allow_pickle=False)
        shape, is_number = stored.shape, stored.dtype.kind in "fiu"
    except (ValueError, OSError, EOFError, AttributeError) as error:
        raise ValueError(f"{path} is cut short or no plain array ({one_line(error)})") from None
    axes = [i for i, n in enumerate(shape) if n == (d or max(shape))]
    if len(shape) != 2 or len(axes) != 1 or not is_number:
        raise ValueError(f"{path} is {shape}: one of two axes must be that of the {d} latents")
    rows = stored.T if axes == [0] else stored
    counts = torch.empty(rows.shape, dtype=torch.int32)
    for start in range(0, len(rows), 64):
        part = np.asarray(rows[start : start + 64])
        if not ((part >= 0) & (part < 2**31) & (part == np.floor(part))).all():
            raise ValueError(f"{path} holds what is no number of tokens: below 0, or a fraction")
        counts[start : start + 64] = torch.from_numpy(part.astype(np.int32))
    about[COUNTS] = f"tokens above τ in {len(rows):,} classes" + ", transposed" * (axes == [0])
    return counts


def _references(
    folder: Path, kept: Mapping[str, Tensor], d: int, about: dict[str, str]
) -> tuple[Tensor, Tensor, Tensor]:
    """Return activations, indices and labels (d, k) of reference images; without the files one
    place that is empty."""
    if VALUES not in kept:
        return torch.zeros(d, 1), torch.full((d, 1), -1), torch.full((d, 1), -1)
    values, images = kept[VALUES], kept[IMAGES].long()
    labels = kept[LABELS].long() if LABELS in kept else torch.full_like(images, -1)
    if not values.shape == images.shape == labels.shape:
        raise ValueError(f"{folder}: reference images of different shapes: {values.shape}, …")
    is_empty = (values == 0) | (images < 0)
    about[VALUES] = f"{values.shape[1]} reference images of each of {d:,} latents"
    about[IMAGES] = f"latents without any: {int(is_empty.all(1).sum()):,}"
    if LABELS in kept:
        about[LABELS] = f"labels up to {int(labels.max())}"
    return values, images.masked_fill(is_empty, -1), labels.masked_fill(is_empty, -1)


def _rates(
    folder: Path, kept: Mapping[str, Tensor], highest: Tensor, about: dict[str, str]
) -> tuple[Tensor, Tensor, Tensor]:
    """Return numbers and shares of active images, and means over them (d,); NaN what is absent.

    A share is at most 1, and a number is whole. A mean is at most the `highest` activation (d,), a
    sum at least that.
    """
    number, share, mean = (torch.full(highest.shape, torch.nan) for _ in range(3))
    if (active := kept.get(ACTIVE)) is not None:
        is_whole, is_share = bool((active == active.round()).all()), bool(active.max() <= 1)
        if is_whole == is_share:
            words = "only 0 and 1" if is_whole else "fractions above 1"
            raise ValueError(f"{folder / ACTIVE} holds {words}: neither numbers nor shares")
        number, share = (number, active) if is_share else (active.long(), share)
        if VALUES in kept and not torch.equal(active > 0, highest > 0):
            raise ValueError(f"{folder}: {ACTIVE} and {VALUES} differ in which latents are active")
        about[ACTIVE] = "shares of images" if is_share else "numbers of images, not of how many"
    if (strength := kept.get(STRENGTH)) is not None:
        is_active, at = highest > 0, strength / highest
        n_mean, n_sum = ((x[is_active]).double().mean() for x in (at <= 1.001, at >= 0.999))
        kind = "means" if n_mean >= CLEAR else "sums" if n_sum >= CLEAR else ""
        if not kind and VALUES in kept:
            raise ValueError(f"{folder / STRENGTH} is neither means nor sums, by {VALUES}")
        mean = strength if kind == "means" else strength / number if kind else mean
        mean = mean.masked_fill(~is_active, 0) if kind else mean
        agree = f" ({float(n_sum if kind == 'sums' else n_mean):.2%} of the active latents agree)"
        about[STRENGTH] = kind + agree if kind else f"means or sums, not told without {VALUES}"
    return number, share, mean


def _class_names(data_set: str, n: int, n_labels: int) -> tuple[str, ...]:
    if data_set.replace("_", "-") in IMAGENET and n in (0, 1000) and n_labels <= 1000:
        return readable(open_clip.IMAGENET_CLASSNAMES)
    return tuple(f"class {i}" for i in range(n or n_labels))


def read_metrics(path: str | Path) -> pd.DataFrame:
    """Tabulate accuracy under masks, a row per class: `mask` (none, on, off), `k` latents,
    `class` and `accuracy` (0..1). Rows without names are in the order of their script.

    Raises `ValueError` for what is no such table.
    """
    try:
        rows = pd.read_csv(path)
        names, is_named = ROWS.get(len(rows), []), not is_numeric_dtype(rows.iloc[:, 0])
        if is_named:
            names, rows = rows.iloc[:, 0].tolist(), rows.iloc[:, 1:]
        parts = [re.fullmatch(r"(no_sae)|(?:(on|off)_(\d+))", name) for name in names]
        values = rows.to_numpy(float)
        values /= 100 if values.max() > 1 else 1
        if len(parts) != len(rows) or not all(parts) or not ((values >= 0) & (values <= 1)).all():
            raise ValueError("rows of other masks, or values that are no shares")
        masks = [(x[2] or "none", int(x[3] or 0)) for x in parts if x]
        largest = max(k for _, k in masks)
        on, off = (values[masks.index((mask, largest))].mean() for mask in ("on", "off"))
        if not is_named and on <= off:
            raise ValueError("in an unknown order: with all latents worse than with none")
    except (ValueError, OSError, LookupError, TypeError) as error:
        raise ValueError(f"{path} is no table of masks ({one_line(error)})") from None
    table = pd.DataFrame(
        values, pd.MultiIndex.from_tuples(masks, names=["mask", "k"]), rows.columns
    )
    return table.reset_index().melt(["mask", "k"], var_name="class", value_name="accuracy")


def write_table(folder: str | Path, table: LatentTable, sums: bool = False) -> None:
    """Write a table as the authors do: for an empty place image 0, for a silent latent the mean
    NaN. With `sums` of images and of their activations, else shares and means."""
    total = table.total / max(1, table.tokens / max(1, table.images))
    rates = (table.n_images, total) if sums else (table.frequency, total / table.n_images)
    tops = table.top_values, table.top_images.clamp_min(0), table.top_labels.clamp_min(0)
    for name, x in zip(NAMES[:5], (*tops, *rates), strict=True):
        with atomic_path(Path(folder) / name) as path:
            torch.save(x.long() if name == LABELS else x.float(), path)
    with atomic_path(Path(folder) / COUNTS) as path:
        np.save(path, table.class_above.double().numpy())
