"""The explorer's data from a `Study`: all latents, and the tasks before and after adaptation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor
from tqdm import tqdm

from patchsae_lib.ablation import by_score
from patchsae_lib.artefacts import note_reading
from patchsae_lib.explorer.bundle import Latents, Task, write_bundle, write_tasks
from patchsae_lib.explorer.effects import class_effects, write_effects
from patchsae_lib.explorer.examples import examples, histogram, nearest
from patchsae_lib.explorer.glimpse import write_glimpse
from patchsae_lib.explorer.lens import Lens
from patchsae_lib.explorer.live import write_live
from patchsae_lib.latents import image_levels
from patchsae_lib.localization import reference_masks
from patchsae_lib.pictures import Subset, spoken, template_of
from patchsae_lib.splits import Split
from patchsae_lib.study import Study

N_HIGHEST = 9  # reference images that are shown
N_SEARCHED = 600  # pictures among which quantiles, random and absent ones are chosen
N_REMOVED = 3  # reference images from which a latent is removed, to see what it does to classes
MEASURED = 3072  # latents: on a CPU, more would take ViT-B/16 longer than all else on the page
N_TRAINED_ON = 24  # pictures of the kind that the autoencoder was trained on
KS = (1, 5, 10, 50, 100, 500, 1000)  # latents on or off, for the curves of a class


def write_latents(study: Study, columns: pd.DataFrame) -> Path:
    """Write a bundle of all latents of a study into its folder, and return the bundle's folder.

    `columns` has a row a latent: numbers, or words that repeat.
    """
    sae, split, table = study.sae, study.train, study.table
    levels = image_levels(sae, split.tokens.select(slice(N_SEARCHED)))
    chosen = examples(levels, split.labels[:N_SEARCHED])
    absent = chosen.pop("absent")
    shown = {"highest": table.top_images[:, :N_HIGHEST], **chosen}
    references = torch.cat(list(shown.values()), 1)
    masks = reference_masks(sae, split.tokens, references, split.clip.grid)
    counts, most = histogram(levels)
    latents = Latents(
        shown, masks, *nearest(sae.W_dec), table.class_per_image, absent,
        counts, most, len(levels), sae.W_dec.detach(),
    )  # fmt: skip
    return write_bundle(study.folder / "explorer", split.pictures, latents, columns)


def write_study(
    study: Study, levels: Mapping[str, Tensor], n_shown: int = 10
) -> tuple[list[Task], dict[str, Lens]]:
    """Put pictures of the autoencoder's kind and of all tasks of a study into its bundle.

    `levels`: "TASK/MODEL" → class-level activations (classes, d) that notebook 5 has counted.
    `n_shown`: pictures of a task that can be looked at patch by patch. The models are put there,
    too, if a page can compute with them. Returns the tasks and, by their names, the lenses with
    which a kernel looks at a user's pictures.
    """
    note_reading(study.folder / "explorer" / "first.js", "2_statistics")
    tasks, lenses = [], {}
    task, lens = _trained_on(study)
    tasks.append(task)
    lenses[task.name] = lens
    for title in tqdm(study.tasks, desc="tasks"):
        task, lens = _adapted(study, title, levels, n_shown)
        tasks.append(task)
        lenses[task.name] = lens
    write_tasks(study.folder / "explorer", tasks)
    write_glimpse(study.folder / "explorer", tasks[0], lenses[tasks[0].name])
    write_live(study.folder / "explorer", study.sae, tasks, lenses)
    return tasks, lenses


def write_class_effects(study: Study) -> tuple[Tensor, Tensor]:
    """Put into the bundle of a study what `class_effects` measures on the latents' reference
    images, and return it; `write_tasks` removes it. Of more than `MEASURED` latents, those that
    are active in most pictures are measured, and the others have no effect."""
    split, references = study.train, study.table.top_images[:, :N_REMOVED].clone()
    references[study.table.n_images.argsort(descending=True, stable=True)[MEASURED:]] = -1
    found = class_effects(split.clip, study.sae, split.tokens, references, split.head)
    write_effects(study.folder / "explorer", *found)
    return found


def _trained_on(study: Study) -> tuple[Task, Lens]:
    """Pictures of the kind that the autoencoder was trained on, seen by CLIP alone."""
    spec, names = study.profile.pictures.spec, study.table.class_names
    split = study.open(spec, "test", N_TRAINED_ON, among=names)
    template = template_of(split.pictures)
    head = study.clip.text_features(spoken(split.class_names), [template])
    lens = Lens(study.sae, {"CLIP": (study.clip, head)}, template=template)
    rows = range(min(N_TRAINED_ON, len(split)))
    looks = lens.look(split.pictures.batch(rows))
    kind, title = spec.partition(":")[0], "The kind it was trained on"
    shown = split.class_names, ["CLIP"], split.pictures, rows, looks
    return Task(kind, title, *shown, [study.table.class_per_image]), lens


def _adapted(
    study: Study, title: str, levels: Mapping[str, Tensor], n_shown: int
) -> tuple[Task, Lens]:
    """Base pictures of a task in CLIP and in the adapted model, with the curves of each class."""
    task = study.tasks[title]
    before, after = task.base, task.adapted(0).base
    splits = {"CLIP": before, "MaPLe": after}
    models = {name: (split.clip, split.head) for name, split in splits.items()}
    images = before.pictures.batch(range(len(before)))
    template = template_of(before.pictures)
    lens = Lens(study.sae, models, images, before.labels, template)
    own = [levels[f"{title}/{name}"] for name in models]
    ks = [k for k in KS if k < study.sae.d_sae]
    pairs = zip(splits.values(), own, strict=True)
    curves = [_shares(study, split, of_class, ks) for split, of_class in pairs]
    chosen = before.pictures
    assert isinstance(chosen, Subset)  # whose source knows what its pictures truly show
    looks = lens.look(images[:n_shown])
    shown = before.class_names, list(models), chosen.pictures, chosen.rows[:n_shown], looks, own
    counts = before.labels.bincount(minlength=len(before.class_names)).tolist()
    return Task(task.name, title, *shown, ks, curves, counts), lens


def _shares(study: Study, split: Split, levels: Tensor, ks: Sequence[int]) -> Tensor:
    """(classes, 2, ks, classes): the predictions for each class with its first latents on, off."""
    masked = study.mask(split, {"own": by_score(levels)}, ks)
    return masked.shares("own", len(split.head))
