"""Few-shot learning as in CoOp: base and novel classes, and which pictures are learnt from."""

from __future__ import annotations

import torch
from torch import Tensor

from patchsae_lib.pictures.sources import Pictures, Subset, labels_of


def base_classes(n_classes: int) -> int:
    """How many of the classes, from the first, are base classes; the others are novel.

    Half of them, and the one in the middle if their number is odd (as in CoOp).

    >>> base_classes(8), base_classes(35)
    (4, 18)
    """
    if n_classes < 2:
        raise ValueError(f"base and novel classes need two classes or more, not {n_classes}")
    return (n_classes + 1) // 2


def few_shot(labels: Tensor, n_classes: int, shots: int, seed: int) -> Tensor:
    """Choose `shots` pictures of each of the first `n_classes` at random.

    Indices (at most n_classes × shots,) into labels (n,), class by class; all pictures of a class
    with fewer. Raises `ValueError` for one class, and for a class without pictures.
    """
    if n_classes < 2:
        raise ValueError(f"learning to tell classes apart takes two or more, not {n_classes}")
    generator = torch.Generator().manual_seed(seed)
    chosen = []
    for c in range(n_classes):
        of_class = (labels == c).nonzero()[:, 0]
        if not len(of_class):
            raise ValueError(f"class {c} has no pictures to learn from")
        chosen.append(of_class[torch.randperm(len(of_class), generator=generator)[:shots]])
    return torch.cat(chosen)


def with_shuffled_labels(pictures: Pictures, n_classes: int, shots: int, seed: int) -> Subset:
    """Return the pictures that `few_shot` chooses, each with the class of another at random: from
    as many of each class, nothing of what a class looks like can be learnt."""
    labels = labels_of(pictures)
    chosen = few_shot(labels, n_classes, shots, seed)
    order = torch.randperm(len(chosen), generator=torch.Generator().manual_seed(seed))
    return Subset(pictures, chosen.tolist(), labels[chosen][order].tolist())
