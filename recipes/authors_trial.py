"""Files in the authors' layout, random but for what is planted: python -m recipes.authors_trial X.

They have the size of the released ones (49,152 latents, 1,000 classes; 1.2 GB on disk), to try
page 8 where those cannot be fetched: `make book PROFILE=authors ARGS='-p authors X'`. Nothing in
them is theirs. A number on the page is right if it is the one planted here (`PLANTED`).
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from patchsae_lib.artefacts import atomic_path
from patchsae_lib.interop.authors import COUNTS, ROWS, write_table
from patchsae_lib.latents import LatentTable

RUN = "out/feature_data/sae_base"
MOVED = 5  # of a class's 50 strongest latents those that another has replaced in the adapted model
#: what the page has to say of the files
PLANTED = {
    "latent 0": "all reference images of class 151: label entropy 0",
    "latent 1": "one each of classes 151 to 160: entropy ln 10, label standard deviation 2.87",
    "latent 2": "silent",
    "latent 3": "five images: no entropy",
    "clusters": "two, in the ratio of 3 to 2",
    "overlap": "0.90 of the 50 strongest in every class; high 45, moved 5 and 5",
    "masks": "0.70 untouched; on from 0.1 to 0.65, off from 0.65 to 0",
}


def planted_table(d: int, n_classes: int, images: int, seed: int = 0) -> LatentTable:
    """Return a table of random statistics with what `PLANTED` says of latents and clusters."""
    random = torch.Generator().manual_seed(seed)
    table = LatentTable.empty(d, [f"class {i}" for i in range(n_classes)])
    is_rare = torch.arange(d) % 5 < 3
    plane = 0.25 * torch.randn(2, d, generator=random)
    plane += torch.where(is_rare, torch.tensor([[-3.5], [-3]]), torch.tensor([[-1.5], [-1]]))
    table.images, table.tokens = images, images * 197
    table.n_images = (10 ** plane[0] * images).long().clamp(10, images)
    mean = 10 ** plane[1].double()
    table.total = mean * table.n_images * 197
    falling = torch.linspace(3, 1.5, 10)
    table.top_values = (mean[:, None] * falling).float()
    table.top_images = torch.randint(images, (d, 10), generator=random)
    table.top_labels = torch.randint(n_classes, (d, 10), generator=random)
    table.top_labels[0], table.top_labels[1] = 151 % n_classes, torch.arange(10) + 151 % n_classes
    table.top_values[1] = table.top_values[1].mean()
    table.n_images[2] = table.total[2] = table.top_values[2] = 0
    table.n_images[3], table.top_values[3, 5:] = 5, 0
    return table


def planted_counts(d: int, n_classes: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return class-level activations (n_classes, d) before and after adaptation: of the 50
    strongest latents of a class `MOVED` are 0 after, and as many others take their places."""
    random = np.random.default_rng(seed)
    before = random.integers(1, 100, (n_classes, d)).astype(float)
    rows = np.arange(n_classes)[:, None]
    strongest = (50 * rows + np.arange(50)) % (d - 200)
    new = d - 1 - np.arange(MOVED)
    before[rows, strongest], before[:, new] = 1000 + np.arange(50), 0
    after = before.copy()
    after[rows, strongest[:, :MOVED]], after[:, new] = 0, 1000 + np.arange(MOVED)
    return before, after


def planted_masks(n_classes: int) -> pd.DataFrame:
    """Return accuracy (per cent) of each class under the masks of `ROWS`, a row each."""
    steps = np.linspace(0.1, 0.65, 10), np.linspace(0.65, 0, 10)
    means = np.array([0.7, *np.stack(steps, 1).ravel()])[:, None]
    spread = np.linspace(-0.02, 0.02, n_classes) * (means > 0)
    return pd.DataFrame(100 * (means + spread), ROWS[21], range(n_classes))


def write_files(folder: Path, d: int = 49_152, n_classes: int = 1000, d_vit: int = 768) -> None:
    """Write all that the authors' archives hold, of these sizes, into a folder."""
    base, maple = (folder / RUN / model / "imagenet" for model in ("base", "maple"))
    table = planted_table(d, n_classes, images=200_000)
    before, after = planted_counts(d, n_classes)
    table.class_above = torch.from_numpy(before).int()
    write_table(base, table)
    maple.mkdir(parents=True, exist_ok=True)
    np.save(maple / COUNTS, np.ascontiguousarray(after.T))
    masks = folder / "eval_outputs/metrics.csv"
    masks.parent.mkdir(exist_ok=True)
    planted_masks(n_classes).to_csv(masks, index=False)
    weights = {
        "W_enc": torch.randn(d_vit, d),
        "b_enc": torch.zeros(d),
        "b_dec": torch.zeros(d_vit),
    }
    weights["W_dec"] = torch.nn.functional.normalize(torch.randn(d, d_vit), dim=1)
    with atomic_path(folder / "data/sae_weight/base/out.pt") as path:
        torch.save({"cfg": {"d_in": d_vit, "d_sae": d}, "state_dict": weights}, path)
    with atomic_path(folder / "data/clip/maple/imagenet/model.pth.tar-2") as path:
        torch.save({"state_dict": learner(d_vit), "epoch": 2}, path)


def learner(d_vit: int, d_text: int = 512, n_ctx: int = 2, depth: int = 9) -> dict[str, object]:
    """Return random parameters of MaPLe's prompt learner, by their official names."""
    texts = ["ctx", *(f"compound_prompts_text.{i}" for i in range(depth - 1))]
    maps = ["proj", *(f"compound_prompt_projections.{i}" for i in range(depth - 1))]
    state = {name: torch.randn(n_ctx, d_text) for name in texts}
    state |= {f"{name}.weight": torch.randn(d_vit, d_text) for name in maps}
    state |= {f"{name}.bias": torch.randn(d_vit) for name in maps}
    return {f"prompt_learner.{name}": tensor for name, tensor in state.items()}


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m recipes.authors_trial", description=__doc__)
    parser.add_argument("folder", type=Path)
    write_files(parser.parse_args(argv).folder)
    print("\n".join(f"{name}: {fact}" for name, fact in PLANTED.items()))


if __name__ == "__main__":
    main()
